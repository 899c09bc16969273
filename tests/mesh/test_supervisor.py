"""Processes of a mesh are started, watched, started again, and do not outlive their supervisor."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh.crew import Child
from mesh.errors import SettingsError
from mesh.supervisor import Supervisor
from tests.conftest import eventually
from tests.e2e.conftest import free_port

ROOT = Path(__file__).parents[2]
MODULES = ("preprocess_svc", "infer_svc", "postprocess_svc", "gateway.worker", "gateway.control")

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

module = __spec__.name.removesuffix(".__main__")
box = Path(os.environ["BOX"])

def end(*_):
    (box / f"{module}-{os.getpid()}.end").write_text(str(time.monotonic()))
    sys.exit(0)

if (box / f"{module}.wrong").exists():
    sys.exit(2)
if (box / f"{module}.crash").exists():
    sys.exit(3)
stubborn = (box / f"{module}.stubborn").exists()
signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else end)
began = box / f"{module}-{os.getpid()}.new"
began.write_text(json.dumps(dict(os.environ)))
began.rename(began.with_suffix(".began"))
while True:
    time.sleep(60)
"""
"""Stands for each service: notes its environment and its end, and does what files tell it."""


class Box:
    """The folder where the fake services run and note what happens to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway = f"127.0.0.1:{free_port()}"
        for module in MODULES:
            package = folder / module.replace(".", "/")
            package.mkdir(parents=True)
            (package.parent / "__init__.py").touch()
            (package / "__init__.py").touch()
            (package / "__main__.py").write_text(PROGRAM)

    def tell(self, module: str, what: str) -> None:
        (self.folder / f"{module}.{what}").touch()

    def pids(self, module: str = "*") -> list[int]:
        """Return the pids of all processes that ever began."""
        return [int(path.stem.rpartition("-")[2]) for path in self.folder.glob(f"{module}-*.began")]

    def environments(self, module: str) -> list[dict[str, str]]:
        return [json.loads(path.read_text()) for path in self.folder.glob(f"{module}-*.began")]

    def ends(self, module: str) -> list[float]:
        """Return the moments of SIGTERM."""
        return [float(path.read_text()) for path in self.folder.glob(f"{module}-*.end")]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    return Box(tmp_path)


@asynccontextmanager
async def supervised(
    box: Box,
    reports: list[str] | None = None,
    grace_s: float = 5,
    tcp: bool = False,
    gpus: Sequence[str] = (),
    **replicas: int,
) -> AsyncIterator[Supervisor]:
    """Start the fake mesh and wait until every process has begun."""
    environment = {**os.environ, "BOX": str(box.folder)}
    report: Callable[[str], Any] = (reports if reports is not None else []).append
    models = box.folder / "models"
    supervisor = Supervisor(models, replicas, environment, box.gateway, report, tcp, gpus)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop(grace_s)
    assert not [pid for pid in box.pids() if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def named(supervisor: Supervisor, name: str) -> Child:
    (child,) = [child for child in supervisor.children if child.name == name]
    return child


async def all_began(box: Box, count: int = 5) -> None:
    await eventually(lambda: len(box.pids()) >= count, within_s=20)


async def test_infer_processes_see_one_gpu_each_in_turn(box: Box) -> None:
    async with supervised(box, gpus=["GPU-a", "MIG-b"], infer=3) as supervisor:
        await all_began(box, 7)
        seen = [env["CUDA_VISIBLE_DEVICES"] for env in box.environments("infer_svc")]
        assert sorted(seen) == ["GPU-a", "GPU-a", "MIG-b"]
        assert len(supervisor.children) == 7
        (other,) = box.environments("preprocess_svc")
        assert other.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


async def test_every_replica_gets_its_socket_and_the_gateway_gets_them_all(box: Box) -> None:
    async with supervised(box, preprocess=2) as supervisor:
        await all_began(box, 6)
        binds = {env["PREPROCESS_BIND"] for env in box.environments("preprocess_svc")}
        (gateway,) = box.environments("gateway.worker")
        assert len(binds) == 2
        assert set(gateway["GATEWAY_PREPROCESS"].split(",")) == binds
        (infer,) = box.environments("infer_svc")
        assert gateway["GATEWAY_INFER"] == infer["INFER_BIND"]
        assert infer["INFER_BIND"].startswith("unix:/")
        assert infer["INFER_MODELS"] == gateway["GATEWAY_MODELS"] == str(box.folder / "models")
        assert gateway["GATEWAY_BIND"] == box.gateway
        assert infer["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{box.gateway}"
        assert len(supervisor.children) == 6
        sockets = Path(infer["INFER_BIND"].removeprefix("unix:")).parent
        assert sockets.is_dir()
    assert not sockets.exists()


async def test_over_tcp_every_replica_has_a_port_and_no_memory_is_shared(box: Box) -> None:
    async with supervised(box, tcp=True, preprocess=2):
        await all_began(box, 6)
        (gateway,) = box.environments("gateway.worker")
        names = ("GATEWAY_PREPROCESS", "GATEWAY_INFER", "GATEWAY_POSTPROCESS")
        binds = ",".join(gateway[name] for name in names).split(",")
        assert len(set(binds)) == 4
        assert all(bind.startswith("127.0.0.1:") for bind in binds)
        (infer,) = box.environments("infer_svc")
        assert infer["INFER_BIND"] == gateway["GATEWAY_INFER"]
        assert infer["INFER_ARENA_MBYTES"] == "0"
        assert all("INFER_ARENA_MBYTES" not in env for env in box.environments("preprocess_svc"))


async def test_endpoint_of_the_environment_wins(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://jaeger:4317")
    async with supervised(box):
        await all_began(box)
        for module in MODULES:
            (found,) = box.environments(module)
            assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"


async def test_process_that_is_killed_comes_back_and_the_others_stay(box: Box) -> None:
    reports: list[str] = []
    async with supervised(box, reports) as supervisor:
        await all_began(box)
        (old,) = box.pids("infer_svc")
        os.kill(old, signal.SIGKILL)
        await all_began(box, 6)
        (new,) = set(box.pids("infer_svc")) - {old}
        assert alive(new)
        assert [child.restarts for child in supervisor.children] == [0, 1, 0, 0, 0]
        assert reports == ["infer-0 ended with status -9; starts again"]


async def test_process_that_ends_by_itself_comes_back(box: Box) -> None:
    async with supervised(box) as supervisor:
        await all_began(box)
        (pid,) = box.pids("gateway.worker")
        os.kill(pid, signal.SIGTERM)
        await all_began(box, 6)
        assert named(supervisor, "gateway-0").restarts == 1


async def test_process_that_keeps_dying_is_tried_less_and_less(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.crew.BACKOFF_S", 0.05)
    box.tell("infer_svc", "crash")
    moments: list[float] = []
    reports: list[str] = []
    async with supervised(box, reports) as supervisor:
        child = named(supervisor, "infer-0")
        for count in range(1, 4):
            await eventually(lambda count=count: child.restarts == count, within_s=20)  # type: ignore[misc]
            moments.append(time.monotonic())
        (box.folder / "infer_svc.crash").unlink()
        await all_began(box)
    assert moments[2] - moments[1] > 0.05  # the second pause is 0.1 s, give or take half of it
    assert reports[0] == "infer-0 ended with status 3; starts again"


async def test_process_that_cannot_even_begin_is_tried_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the machine has no memory or no process id left."""
    monkeypatch.setattr("mesh.crew.BACKOFF_S", 0.05)
    reports: list[str] = []
    with monkeypatch.context() as broken:
        broken.setattr("mesh.crew.sys.executable", "/no/such/python")
        async with supervised(box, reports):
            await eventually(lambda: len(reports) >= 8)
            broken.undo()
            await all_began(box)
    assert "No such file" in reports[0]


async def test_wrong_settings_end_it_with_a_message_and_are_not_tried_again(box: Box) -> None:
    box.tell("postprocess_svc", "wrong")
    async with supervised(box) as supervisor:
        text = await asyncio.wait_for(asyncio.shield(supervisor.failed), 20)
        assert text == "postprocess-0 cannot start, its log line says why"
        await all_began(box, 4)
        assert named(supervisor, "postprocess-0").restarts == 0


async def test_data_workers_are_stopped_before_the_stages_and_the_control_process_last(
    box: Box,
) -> None:
    async with supervised(box, gateway=2):
        await all_began(box, 6)
    workers, (control,) = box.ends("gateway.worker"), box.ends("gateway.control")
    stages = [moment for module in MODULES[:3] for moment in box.ends(module)]
    assert (len(workers), len(stages)) == (2, 3)
    assert max(workers) < min(stages)
    assert max(stages) < control


async def test_data_workers_and_the_control_process_find_each_other(box: Box) -> None:
    async with supervised(box, gateway=2):
        await all_began(box, 6)
        found = box.environments("gateway.worker") + box.environments("gateway.control")
        assert sorted(env.get("GATEWAY_WORKER", "") for env in found) == ["", "0", "1"]
        assert {env["GATEWAY_WORKERS"] for env in found} == {"2"}
        (sockets,) = {env["GATEWAY_SOCKETS"] for env in found}
        (infer,) = box.environments("infer_svc")
        assert infer["INFER_BIND"].startswith(f"unix:{sockets}/")


async def test_processes_are_told_to_make_no_threads_of_their_own(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    async with supervised(box):
        await all_began(box)
        for module in MODULES:
            (found,) = box.environments(module)
            assert found["RAYON_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == "1"
            assert found["OMP_NUM_THREADS"] == "3"


async def test_second_mesh_at_the_same_port_is_an_error(box: Box) -> None:
    async with supervised(box):
        second = Supervisor(box.folder, {}, os.environ, box.gateway, print)
        with pytest.raises(SettingsError, match=f"cannot listen at {box.gateway}: another program"):
            second.start()


async def test_process_that_does_not_stop_is_killed_after_its_grace(box: Box) -> None:
    box.tell("infer_svc", "stubborn")
    reports: list[str] = []
    async with supervised(box, reports, grace_s=0.3):
        await all_began(box)
    assert reports == ["infer-0 did not stop in 0 s and is killed"]


async def test_stop_in_the_middle_of_a_start_leaves_no_process(box: Box) -> None:
    before = set(psutil.Process().children(recursive=True))
    for turns in range(0, 12, 3):
        async with supervised(box):
            for _ in range(turns):
                await asyncio.sleep(0)
    new = set(psutil.Process().children(recursive=True)) - before
    assert not [process for process in new if alive(process.pid)]


async def test_processes_die_with_a_supervisor_that_is_killed(box: Box) -> None:
    environment = {**os.environ, "BOX": str(box.folder), "PYTHONPATH": str(ROOT)}
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.mesh.supervisor_process", box.gateway, env=environment
    )
    await all_began(box)
    assert all(alive(pid) for pid in box.pids())
    supervisor.kill()
    await supervisor.wait()
    await eventually(lambda: not any(alive(pid) for pid in box.pids()))
    assert len(box.pids()) == 5
