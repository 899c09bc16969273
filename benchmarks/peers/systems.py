"""The systems that are compared: how each is started, and who asks it how."""

import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from benchmarks.bench_model import bench_model, write_repository
from benchmarks.inputs import pictures, texts, write_inputs
from benchmarks.peers import triton
from benchmarks.peers.server import ROOT, listens, running
from benchmarks.peers.venvs import CLIENT, FASTAPI, LITSERVE, TRITON, Venv
from mesh.cli.up import wait_ready
from mesh.port import free_ports

PREPROCESS_REPLICAS = 2
READY_S = 0.5


@dataclass(frozen=True)
class Place:
    """The folder of one run: models, inputs, repositories, logs."""

    root: Path

    @property
    def models(self) -> Path:
        """The mesh's repository."""
        return self.root / "models"

    @property
    def floats(self) -> Path:
        """The bench model that takes normalized floats."""
        return self.root / "floats.onnx"

    def inputs(self, work: str) -> Path:
        """Return the folder with the payloads of a kind of work."""
        return self.root / "inputs" / work

    def log(self, name: str) -> Path:
        """Return where a system's output goes."""
        return self.root / "logs" / f"{name}.log"

    def prepare(self) -> None:
        """Write models, inputs and Triton's repositories."""
        model = write_repository(self.models)
        onnx.save(bench_model(normalizes=False), self.floats)
        shutil.copytree(ROOT / "models/language", self.models / "language")
        write_inputs(self.inputs("jpeg"), pictures())
        write_inputs(self.inputs("text"), texts())
        language = self.models / "language"
        text = triton.text_steps(language / "1/model.onnx", language / "tokenizer")
        documented = triton.documented_steps(self.floats)
        two = triton.documented_steps(self.floats, PREPROCESS_REPLICAS)
        for name, pipeline, steps, delay_us in (
            ("triton-docs", "bench", documented, triton.DOCUMENTED_DELAY_US),
            ("triton-no-delay", "bench", documented, None),
            ("triton-2-decoders", "bench", two, triton.DOCUMENTED_DELAY_US),
            ("triton-own-ops", "bench", triton.own_steps(model), None),
            ("triton-docs-text", "language", text, triton.DOCUMENTED_DELAY_US),
            ("triton-no-delay-text", "language", text, None),
        ):
            paths = (ROOT, TRITON.site_packages)
            triton.write_ensemble(self.root / name, pipeline, steps, delay_us, paths)


@dataclass(frozen=True)
class Start:
    """How a server starts at a port."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    """None: as soon as it accepts connections."""


@dataclass(frozen=True)
class System:
    """One line of the table."""

    name: str
    title: str
    reference: str
    """The in-process loop that must give the same answers."""
    protocol: str = ""
    """Of the client; empty for a loop inside one process."""
    start: Callable[[Place, int, str], Start] | None = None
    """Given the place, a free port and the system's name."""
    venvs: tuple[Venv, ...] = ()
    """Environments that it needs."""
    swept: bool = False
    """Whether it is a line of the plot."""

    @property
    def work(self) -> str:
        """What comes in."""
        return "text" if self.reference == "text" else "jpeg"

    @property
    def client_python(self) -> str:
        """The interpreter of its client."""
        return str(CLIENT.python) if self.protocol.startswith("http") else sys.executable

    @contextmanager
    def serve(self, place: Place) -> Iterator[tuple[int, str]]:
        """Run the server; give the root of its processes and its address.

        Raises:
            ServerFailed: it did not start.
        """
        if self.start is None:
            raise ValueError(f"{self.name} is a loop inside one process, wanted a server")
        port = free_ports(1)[0]
        start = self.start(place, port, self.name)
        ready = start.ready or (lambda: listens(port))
        with running(start.command, start.environment, place.log(self.name), ready) as pid:
            yield pid, f"127.0.0.1:{port}"


PROCESSES = {"gateway": 1, "preprocess": PREPROCESS_REPLICAS, "postprocess": 1}
"""Of the mesh's services."""
NOTHING: Mapping[str, str] = {}


def start_mesh(
    place: Place,
    port: int,
    name: str,
    processes: Mapping[str, int] = PROCESSES,
    environment: Mapping[str, str] = NOTHING,
    options: Sequence[str] = (),
) -> Start:
    """Start it as `trtmesh up` does; with `tcp` in the name without sockets and shared memory."""
    address = f"127.0.0.1:{port}"
    words = ["-m", "mesh.cli", "up", "--models", str(place.models), "--bind", address]
    words += ["--workers", *(f"{service}={count}" for service, count in processes.items())]
    words += [*options, *(["--tcp"] if "tcp" in name else [])]
    variables = {"GATEWAY_HTTP": "", "GATEWAY_METRICS_PORT": "0", **environment}
    return Start(
        [sys.executable, *words], variables, lambda: asyncio.run(wait_ready(address, READY_S))
    )


def start_triton(place: Place, port: int, name: str) -> Start:
    """Start the server of the wheel with the repository of this name."""
    libraries = str(TRITON.site_packages / "nvidia_pytriton.libs")
    command = triton.server_command(TRITON.site_packages, place.root / name, port)
    return Start(command, {"LD_LIBRARY_PATH": libraries})


def start_fastapi(place: Place, port: int, name: str) -> Start:
    """Start uvicorn, with one worker unless the name ends in a number."""
    work = "text" if name.endswith("text") else "jpeg"
    model = place.models / "language/1/model.onnx" if work == "text" else place.floats
    words = ["-m", "uvicorn", f"benchmarks.peers.apps.fastapi_{work}:app", "--port", str(port)]
    words += ["--log-level", "warning", "--workers", name[-1] if name[-1].isdigit() else "1"]
    environment = {
        "BENCH_MODEL": str(model),
        "BENCH_TOKENIZER": str(place.models / "language/tokenizer"),
    }
    return Start([str(FASTAPI.python), *words], environment)


def start_litserve(place: Place, port: int, name: str) -> Start:
    """Start LitServe with one worker, its default."""
    words = ["-m", "benchmarks.peers.apps.litserve_jpeg", str(port)]
    environment = {"BENCH_MODEL": str(place.floats)}
    return Start([str(LITSERVE.python), *words], environment)


WEB = (FASTAPI, CLIENT)
SYSTEMS = (
    System("loop", "loop in one process, as people write it", "plain"),
    System("loop-own-ops", "loop in one process, own ops", "own-ops"),
    System("mesh", "trtmesh, unary", "own-ops", "mesh", start_mesh, swept=True),
    System("mesh-stream", "trtmesh, Stream", "own-ops", "mesh-stream", start_mesh, swept=True),
    System("mesh-tcp", "trtmesh, unary, every hop over TCP", "own-ops", "mesh", start_mesh),
    System("triton-docs", "Triton ensemble, as documented", "plain", "oip", start_triton,
           (TRITON,), swept=True),
    System("triton-no-delay", "Triton ensemble, no queue delay", "plain", "oip", start_triton,
           (TRITON,)),
    System("triton-2-decoders", "Triton ensemble, as documented, 2 instances that decode", "plain",
           "oip", start_triton, (TRITON,)),
    System("triton-own-ops", "Triton ensemble, our ops", "own-ops", "oip", start_triton,
           (TRITON,), swept=True),
    System("fastapi", "FastAPI + ONNX Runtime", "plain", "http-form", start_fastapi, WEB,
           swept=True),
    System("fastapi-2", "FastAPI, 2 workers", "plain", "http-form", start_fastapi, WEB),
    System("litserve", "LitServe", "plain", "http-json", start_litserve, (LITSERVE, CLIENT),
           swept=True),
    System("loop-text", "text: loop in one process", "text"),
    System("mesh-text", "text: trtmesh, unary", "text", "mesh", start_mesh),
    System("mesh-stream-text", "text: trtmesh, Stream", "text", "mesh-stream", start_mesh),
    System("triton-docs-text", "text: Triton ensemble, as documented", "text", "oip",
           start_triton, (TRITON,)),
    System("triton-no-delay-text", "text: Triton ensemble, no queue delay", "text", "oip",
           start_triton, (TRITON,)),
    System("fastapi-text", "text: FastAPI + ONNX Runtime", "text", "http-json", start_fastapi,
           WEB),
)  # fmt: skip
BY_NAME = {system.name: system for system in SYSTEMS}
