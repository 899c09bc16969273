"""`python -m` a CPU stage: one replica in this process, or a parent of several."""

from importlib import import_module

from mesh import log
from mesh.cores import workers
from mesh.director import Director
from mesh.host import run_process
from mesh.port import UNIX
from mesh.settings import ServiceSettings, Workers, load


class StageSettings(ServiceSettings):
    """What a CPU stage can be told beside."""

    workers: Workers = 0
    """Worker processes, each a replica of its own; 0 or `auto`: by cores."""


def run_stage(stage: str, kind: type[StageSettings]) -> None:
    """Run a stage until a signal comes.

    Args:
        stage: as `preprocess`; its replica is `main` of `preprocess_svc.replica`, which only
            processes that do the work import.
        kind: its settings.
    """

    async def main() -> None:
        log.configure(stage, "INFO")
        settings = load(kind)
        count = workers(stage, settings.workers)
        if settings.bind.startswith(UNIX) and not settings.workers:
            count = 1  # a socket file has one owner
        if count == 1:
            await import_module(f"{stage}_svc.replica").main()
            return
        log.configure(f"{stage}-parent", settings.log_level)
        await Director(f"mesh.v1.{stage.title()}", f"{stage}_svc", settings, count).run()

    run_process(main)
