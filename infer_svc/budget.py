"""Memory of GPUs: who goes when a model has no room.

How much a model takes is known once it is loaded, and TensorRT's own memory is in no plan. So each
load is looked at afterwards: what is beyond the budget is given back by those models that were not
asked for longest, and where that is not enough, by the new one.
"""

import logging
from collections.abc import Callable, Iterable

from infer_svc.served import Served

log = logging.getLogger(__name__)

MEBIBYTE = 1024**2


class Budget:
    """Of each GPU.

    Args:
        most_bytes: that may be in use on a GPU, by anybody; 0: all that there is.
        used: returns the bytes in use on a GPU, by its number.
    """

    def __init__(self, most_bytes: int, used: Callable[[int], int]) -> None:
        self.most_bytes = most_bytes
        self._used = used

    def excess(self, served: Served) -> dict[int, int]:
        """Return by how much the GPUs of a model are over the budget."""
        if not self.most_bytes:
            return {}
        gpus = gpus_of(served)
        over = {gpu: self._used(gpu) - self.most_bytes for gpu in gpus}
        return {gpu: size for gpu, size in over.items() if size > 0}

    def text(self, over: dict[int, int]) -> str:
        """Return what is wrong, and what to do."""
        told = ", ".join(f"GPU {gpu} by {size // MEBIBYTE} MiB" for gpu, size in over.items())
        return (
            f"the models are over INFER_GPU_MBYTES ({self.most_bytes // MEBIBYTE}): {told}; unload "
            "one that is in use, or allow more"
        )


def gpus_of(served: Served) -> set[int]:
    """Return the numbers of the GPUs that a model runs on."""
    return {place.gpu for place in served.model.placements if place.gpu is not None}


def evictable(others: Iterable[Served], gpus: set[int]) -> list[Served]:
    """Return the models on some GPUs that run nothing now; who was not asked for longest is first.

    Args:
        others: that serve, but the one that needs room.
        gpus: numbers.
    """
    idle = [one for one in others if not one.running and gpus_of(one) & gpus]
    return sorted(idle, key=lambda one: one.used_at)
