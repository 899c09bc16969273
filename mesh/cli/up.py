"""`trtmesh up`: the whole mesh on this machine."""

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic_settings import BaseSettings

from mesh.cli.cuda_driver import Driver
from mesh.cli.options import Commands, say
from mesh.cores import workers
from mesh.errors import EngineError, InvalidInput, SettingsError
from mesh.settings import Workers, load
from mesh.supervisor import SERVICES, Supervisor

HINT_S = 30.0
HINT = "no pipeline serves yet; `trtmesh models` says what is refused and why, the log what fails"


def add_commands(commands: Commands) -> None:
    """Add `up` to the command line."""
    parser = commands.add_parser("up", help="start gateway and stages on this machine")
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR",
        help="the model repository; default: models",
    )  # fmt: skip
    parser.add_argument(
        "--workers", nargs="+", default=[], metavar="SERVICE=N",
        help="processes of a service, as preprocess=2; default: by cores, and one of infer",
    )  # fmt: skip
    parser.add_argument(
        "--bind", default="127.0.0.1:8001", metavar="HOST:PORT",
        help="of the gateway; default: 127.0.0.1:8001",
    )  # fmt: skip
    parser.add_argument(
        "--http", metavar="HOST:PORT",
        help="of the gateway over HTTP; empty: none; default: 127.0.0.1:8000",
    )  # fmt: skip
    parser.add_argument(
        "--tcp", action="store_true", help="no sockets and no shared memory: as between machines"
    )
    parser.add_argument(
        "--gpu-each", action="store_true",
        help="each infer process sees one GPU only, in turn; so --workers infer=2 uses two",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start the mesh, and stop it on SIGINT or SIGTERM."""
    return asyncio.run(_up(arguments))


def check_models(models: Path) -> None:
    """Look for the repository before any process is started.

    Raises:
        SettingsError: there is none.
    """
    if not models.is_dir():
        raise SettingsError(f"model repository {models} is no folder; give one with --models DIR")


async def wait_ready(address: str, timeout_s: float) -> bool:
    """Wait until a gateway says that it is SERVING; False if it does not in time."""
    end = time.monotonic() + timeout_s
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < end:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                answer = health_pb2.HealthCheckResponse()
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return True
            await asyncio.sleep(0.1)
    return False


async def _up(arguments: argparse.Namespace) -> int:
    check_models(arguments.models)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(
        arguments.models, _workers(arguments.workers), os.environ,  # noqa: TID251 passed on
        arguments.bind, say, arguments.tcp, _gpus() if arguments.gpu_each else (),
        load(_Settings).gateway_http if arguments.http is None else arguments.http,
    )  # fmt: skip
    started = time.monotonic()
    supervisor.start()
    ready = asyncio.create_task(wait_ready(arguments.bind, 600))
    hint = loop.call_later(HINT_S, say, HINT)
    stopping = asyncio.create_task(stop.wait())
    try:
        ends: set[asyncio.Future[Any]] = {stopping, supervisor.failed}
        await asyncio.wait({ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
        hint.cancel()
        if ready.done() and ready.result():
            say(f"ready at {arguments.bind} after {time.monotonic() - started:.1f} s")
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hint.cancel()
        ready.cancel()
        stopping.cancel()
        await supervisor.stop()
    if supervisor.failed.done():
        say(supervisor.failed.result())
        return 2
    return 0


def _gpus() -> list[str]:
    """Return the GPUs of this machine that this process may use.

    Raises:
        SettingsError: there is none.
    """
    try:
        found = [gpu.uuid for gpu in Driver().gpus()]
    except (SettingsError, EngineError) as err:
        raise SettingsError(f"--gpu-each came, and there is no NVIDIA driver: {err}") from err
    if not found:
        raise SettingsError("--gpu-each came, and no GPU is visible; see `trtmesh doctor --gpu`")
    return found


class _Settings(BaseSettings):
    """What the environment says; the services read the same."""

    preprocess_workers: Workers = 0
    postprocess_workers: Workers = 0
    gateway_workers: Workers = 0
    gateway_http: str = "127.0.0.1:8000"


def _workers(given: list[str]) -> dict[str, int]:
    """Return the workers of each service: as given, else as the environment says, else by cores."""
    set_ = load(_Settings)
    counts = {
        service: workers(service, getattr(set_, f"{service}_workers", 0)) for service in SERVICES
    }
    for text in given:
        service, _, number = text.partition("=")
        if service not in SERVICES or not number.isdigit() or int(number) < 1:
            raise InvalidInput(f"--workers {text!r} came, wanted SERVICE=N with one of {SERVICES}")
        counts[service] = int(number)
    return counts
