"""How many processes of each kind a machine's cores are worth."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
SHARES = {"preprocess": 0.6, "gateway": 0.25, "postprocess": 0.1}
"""Of the CPU time of a request (JPEG in, top-5 out), as `benchmarks/pipeline.py` measures it; the
rest is the infer stage's, which is one process per GPU whatever the cores are."""
MAX_WORKERS = 16
"""Each takes up to 100 MB, so more have to be asked for."""


def cores(root: Path = CGROUP) -> int:
    """Return how many cores this process may use: by affinity, and by the limit of its container.

    Args:
        root: where the files of control groups are.
    """
    able = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return min(able, math.ceil(quota)) if quota else able


def workers(service: str, given: int, count: int | None = None) -> int:
    """Return how many worker processes a service has.

    Args:
        service: `gateway`, `preprocess` or `postprocess`; any other has one.
        given: as its settings say; 0: by cores.
        count: of cores; None: those of this process.
    """
    if given:
        return given
    share = SHARES.get(service, 0.0) * (cores() if count is None else count)
    # The gateway and postprocess are rounded down: on few cores they would only take turns.
    whole = math.ceil(share) if service == "preprocess" else math.floor(share)
    return min(max(1, whole), MAX_WORKERS)


def _quota(root: Path) -> float:
    """Return the cores that the control group grants; 0: as many as there are."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except OSError:  # version 1 of control groups, or none
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return 0.0
    return max(0.0, int(quota) / int(period)) if quota.strip() != "max" else 0.0
