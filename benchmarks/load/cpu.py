"""CPU time of a server's processes."""

from collections import defaultdict

import psutil


def cpu_seconds(root: int) -> dict[str, float]:
    """Return the CPU time that each kind of process has used, of a process and all below it.

    Of processes that ended, what their parent waited for is counted with the parent.

    Raises:
        psutil.NoSuchProcess: the root is gone.
    """
    top = psutil.Process(root)
    used: dict[str, float] = defaultdict(float)
    for process in (top, *top.children(recursive=True)):
        try:
            times, kind = process.cpu_times(), kind_of(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        used[kind] += times.user + times.system + times.children_user + times.children_system
    return dict(used)


def kind_of(command: list[str]) -> str:
    """Return the module of `python -m module`, else the file name of the program or script."""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    words = [word for word in command if not word.startswith("-")]
    names = [word.rpartition("/")[2] for word in words]
    scripts = names[1:2] if names and names[0].startswith("python") else names[:1]
    return (scripts or names or ["ended"])[0]


def cpu_us(before: dict[str, float], after: dict[str, float], answers: int) -> dict[str, float]:
    """Return microseconds of CPU per answer of each kind of process between two looks.

    Raises:
        ValueError: no answer, so that nothing can be said per answer.
    """
    if answers < 1:
        raise ValueError("no request was answered, so there is no CPU time per answer")
    return {
        kind: round((used - before.get(kind, 0.0)) / answers * 1e6, 1)
        for kind, used in sorted(after.items())
    }
