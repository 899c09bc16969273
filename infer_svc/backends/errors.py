"""What can go wrong in a runtime, by what helps against it."""

from mesh.errors import EngineError


class OutOfMemory(EngineError):
    """Bug: the GPU has no memory for a batch. A smaller one may fit."""


class DeviceLost(EngineError):
    """Bug: the GPU's context cannot be used any more. Only a new process helps."""
