"""Every error that crosses a process boundary; a docstring begins with whose fault it is."""


class MeshError(Exception):
    """Expected or a bug, as its leaf says. Its text is shown to the user."""


class InvalidInput(MeshError):
    """Expected: the caller's bytes, tensors or parameters cannot be used. Never retried."""


class NotFound(MeshError):
    """Expected: no pipeline, model, op or trace has that name."""


class Refused(MeshError):
    """Expected: the target exists but its configuration does not fit, so it is not served."""


class Overloaded(MeshError):
    """Expected: a bounded queue is full. Try again later.

    Args:
        text: for the caller.
        retry_s: seconds after which it makes sense to come back; 0: not known.
    """

    def __init__(self, text: str = "", retry_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_s = retry_s


class ReplicaFull(Overloaded):
    """Expected: this replica takes no more now; the stage's client sends the item elsewhere."""


class DeadlineExceeded(MeshError):
    """Expected: the caller's time was over before the answer was there."""


class QueueTimeout(DeadlineExceeded):
    """Expected: a model's queue policy lets no request wait for so long."""


class Cancelled(MeshError):
    """Expected: the caller gave up."""


class StageUnavailable(MeshError):
    """Expected: no replica of a stage can be reached now, or it went away. Safe to retry."""


class EngineError(MeshError):
    """Bug: the engine refused or failed a batch that had passed every check."""


class InternalError(MeshError):
    """Bug: an error that nobody expected. The log has its traceback; the caller gets no detail."""


class SettingsError(MeshError):
    """Expected: a setting, a pipeline.yaml or a config.pbtxt is wrong; stops a start only."""
