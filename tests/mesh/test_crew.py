"""A crew ends in the order of its ranks; test_supervisor.py has how it is kept running."""

import asyncio
import os
from pathlib import Path

from mesh.crew import Child, Crew
from tests.conftest import eventually

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

box = Path(os.environ["BOX"])
name = os.environ["NAME"]

def end(*_):
    if name == "slow":
        time.sleep(0.2)
    with (box / "ends").open("a") as ends:
        ends.write(name + "\\n")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
(box / name).touch()
while True:
    time.sleep(60)
"""


async def test_lower_ranks_have_ended_before_higher_ones_are_told(tmp_path: Path) -> None:
    (tmp_path / "member.py").write_text(PROGRAM)
    environment = {**os.environ, "BOX": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    ranks = {"last": 2, "slow": 0, "middle": 1, "fast": 0}
    children = [
        Child(name, "member", {**environment, "NAME": name}, rank) for name, rank in ranks.items()
    ]
    crew = Crew(children, print)
    crew.start()
    await eventually(lambda: all((tmp_path / name).exists() for name in ranks), 20)
    await crew.stop(10)
    assert (tmp_path / "ends").read_text().split() == ["fast", "slow", "middle", "last"]
    assert not crew.failed.done()
    assert all(child.keeper is not None and child.keeper.done() for child in children)
    assert asyncio.all_tasks() == {asyncio.current_task()}
