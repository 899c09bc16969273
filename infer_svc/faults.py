"""Faults on purpose, so that every rung of recovery can be seen to work."""

import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from infer_svc.backends.errors import DeviceLost, OutOfMemory
from mesh.errors import EngineError, SettingsError

SEAMS = ("h2d", "enqueue", "sync", "context", "memory", "stall", "device", "illegal", "spin")
"""Copies to the GPU, the engine's start, the wait for its end, making a context; then what fails
in other ways: no memory, work that takes long, a GPU that is lost. The last two are real on a GPU:
a kernel that writes to address 0, and one that never ends."""
STALL_S = 3600.0
LONGEST_STALL_S = 86400.0


@dataclass(frozen=True)
class Fault:
    """How often a seam fails."""

    rate: float
    """0 to 1, of the times that the seam is passed."""
    seconds: float = STALL_S
    """How long a stall takes."""


class Faults:
    """Decides at each seam whether it fails this time.

    Args:
        faults: by seam; a seam without one never fails.
        seed: of the random numbers.
    """

    def __init__(self, faults: Mapping[str, Fault] | None = None, seed: int | None = None) -> None:
        self._faults = dict(faults or {})
        self._random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        """Faults so far, by seam."""

    def hits(self, seam: str) -> bool:
        """Tell whether a seam fails this time; for who makes the failure."""
        fault = self._faults.get(seam)
        if fault is None or self._random.random() >= fault.rate:
            return False
        self.injected[seam] += 1
        return True

    def at(self, seam: str) -> None:
        """Fail here, or (mostly) do nothing.

        Raises:
            EngineError, OutOfMemory, DeviceLost: as the seam itself would.
        """
        if not self.hits(seam):
            return
        text = f"an injected fault at {seam!r}"
        if seam in {"stall", "spin"}:
            time.sleep(self._faults[seam].seconds)
        elif seam == "memory":
            raise OutOfMemory(text)
        elif seam in {"device", "illegal"}:
            raise DeviceLost(text)
        else:
            raise EngineError(text)


NO_FAULTS = Faults()


def parse_faults(text: str) -> Faults:
    """Return the faults that a setting describes.

    Args:
        text: `SEAM=RATE,…`, and `stall=RATE:SECONDS`; empty: none.

    Raises:
        SettingsError: an unknown seam, a rate that is none, or seconds at another seam.
    """
    faults = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        seam, _, value = word.partition("=")
        rate, _, seconds = value.partition(":")
        try:
            fault = Fault(float(rate), float(seconds) if seconds else STALL_S)
        except ValueError:
            fault = Fault(-1)
        timed = 0 <= fault.seconds <= LONGEST_STALL_S and (not seconds or seam == "stall")
        if seam not in SEAMS or not 0 <= fault.rate <= 1 or not timed:
            raise SettingsError(
                f"fault {word!r} came, wanted SEAM=RATE with one of {SEAMS} and a rate from 0 to "
                f"1; stall=RATE:SECONDS, at most {LONGEST_STALL_S:.0f}"
            )
        faults[seam] = fault
    return Faults(faults)
