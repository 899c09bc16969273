"""`engine profile`: the time of each layer, measured on a GPU beside whatever runs there."""

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_svc.backends.cuda import Buffer, Device, Stream, device
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.backends.trt_api import Api
from infer_svc.backends.trt_inspect import LayerTime
from infer_svc.build.building import add_model, cache_root, model_of
from infer_svc.build.builds import Builds
from infer_svc.build.listing import table
from mesh.errors import EngineError, InvalidInput, SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

WARMUPS = 5


def add_profile(commands: Commands) -> None:
    """Add `profile` to a command line."""
    parser = commands.add_parser("profile", help="time of each layer of an engine, on a GPU")
    add_model(parser)
    parser.add_argument("--rows", type=int, metavar="N", help="of the batch; default: the most")
    parser.add_argument(
        "--bucket", type=int, default=-1, metavar="N",
        help="which of its length buckets, from 0; default: the longest",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=50, metavar="N", help="that are averaged")
    parser.add_argument("--layers", type=int, default=30, metavar="N", help="how many are shown")
    parser.set_defaults(run=profile_command)


def profile_command(arguments: argparse.Namespace) -> int:
    """Print the layers, the slowest first; return the exit status.

    Raises:
        SettingsError: there is no GPU, or the model cannot be used.
        EngineError: its engine cannot be built or run.
    """
    logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stderr)
    try:
        gpu = device(arguments.gpu)
    except SettingsError as err:
        raise SettingsError(f"engine profile runs the engine on a GPU: {err}") from err
    version, config = model_of(arguments)
    api = tensorrt_api()
    found = Builds(cache_root(arguments)).engine_for(
        version / config.filename, config, arguments.gpu
    )
    lane = ProfileLane(api, gpu, found.plan, arguments.bucket, arguments.rows)
    times = lane.measure(arguments.runs)
    sys.stdout.write("\n".join(lines(times, arguments.layers, lane.shapes, gpu.name)) + "\n")
    return 0


def lines(
    times: list[LayerTime], count: int, shapes: dict[str, tuple[int, ...]], gpu: str
) -> list[str]:
    """Return the lines of a table.

    Args:
        times: of all layers, the slowest first.
        count: how many are shown.
        shapes: of the inputs.
        gpu: its name.
    """
    total = sum(time.ms for time in times)
    shown = times[:count]
    sizes = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    rows = [("MS", "SHARE", "LAYER")]
    rows += [(f"{t.ms:.4f}", f"{t.ms / total:.1%}" if total else "", t.name) for t in shown]
    return [
        f"{total:.3f} ms in {len(times)} layers on {gpu}, {sizes}",
        *table(rows),
        *([f"… and {len(times) - count} more"] if len(times) > count else []),
    ]


class ProfileLane:
    """A stream, buffers and a context that only measures.

    Args:
        api: of TensorRT.
        gpu: that runs it.
        plan: file of the engine.
        bucket: number of its optimization profile; -1: the last.
        rows: of the batch; None: the largest.

    Raises:
        EngineError: the engine cannot be loaded here.
        InvalidInput: it has no such profile or no room for the rows.
    """

    def __init__(
        self, api: Api, gpu: Device, plan: Path, bucket: int = -1, rows: int | None = None
    ) -> None:
        self._gpu = gpu
        with gpu.current():
            self._engine: Any = api.load(plan.read_bytes())
            self._cache = api.runtime_cache(self._engine)
            # A graph is one piece, whose layers have no times.
            self._context, self._config = api.context(self._engine, self._cache, graphs=False)
            self._stream = Stream(gpu.driver)
            index = self._choose(bucket)
            tensors = api.tensors(self._engine)
            self.shapes = {
                tensor.name: sized(
                    tensor.shape, self._engine.get_tensor_profile_shape(tensor.name, index)[2], rows
                )
                for tensor in tensors
                if tensor.is_input
            }
            for name, shape in self.shapes.items():
                self._context.set_input_shape(name, shape)
            self._buffers = []
            for tensor in tensors:
                size = math.prod(self._context.get_tensor_shape(tensor.name))
                buffer = Buffer(gpu, size, np.dtype(tensor.dtype))
                if tensor.is_input:
                    buffer.upload(buffer.host.nbytes, self._stream.handle)
                self._context.set_tensor_address(tensor.name, buffer.address)
                self._buffers.append(buffer)
            self._times = api.watch(self._context)

    def measure(self, runs: int) -> list[LayerTime]:
        """Run and return the mean times of all layers, the slowest first.

        Raises:
            EngineError: TensorRT refused a run.
        """
        with self._gpu.current():
            for number in range(WARMUPS + runs):
                if number == WARMUPS:
                    self._times.clear()
                if not self._context.execute_async_v3(self._stream.handle):
                    raise EngineError("TensorRT refused the run")
                self._stream.wait()
        return self._times.worst()

    def _choose(self, bucket: int) -> int:
        count = self._engine.num_optimization_profiles
        if not -count <= bucket < count:
            raise InvalidInput(f"--bucket {bucket} came, the engine has {count} from 0")
        index = bucket % count
        if index:
            self._context.set_optimization_profile_async(index, self._stream.handle)
            self._stream.wait()
        return int(index)


def sized(dims: tuple[int, ...], limits: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
    """Return the largest shape of an input, or the one with so many rows.

    Args:
        dims: as the engine declares them; -1 first: rows.
        limits: its largest shape.
        rows: that are wanted; None: the most.

    Raises:
        InvalidInput: there is no room for them.
    """
    if rows is None or not dims or dims[0] != -1:
        return tuple(limits)
    if not 1 <= rows <= limits[0]:
        raise InvalidInput(f"--rows {rows} came, the engine takes 1 to {limits[0]}")
    return (rows, *limits[1:])
