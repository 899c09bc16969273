"""What an engine is made of, and how long each of its layers takes."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mesh.errors import EngineError


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, which may stand for several nodes of the ONNX file."""

    name: str
    kind: str = ""
    """As TensorRT calls it; empty unless the engine was built `detailed`."""
    inputs: tuple[str, ...] = ()
    """Name and type of each."""
    outputs: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    """All that TensorRT tells of it, by its own keys, which differ between versions."""


class LayerTime(NamedTuple):
    """Time of one layer."""

    name: str
    ms: float
    """Mean of its runs."""
    runs: int


class LayerTimes:
    """Milliseconds of each layer, added up over the runs of one context."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, int]] = {}
        self.profiler: Any = None
        """The context refers to it without keeping it."""

    def add(self, name: str, ms: float) -> None:
        """Take the time of one run of a layer."""
        total, runs = self._found.get(name, (0.0, 0))
        self._found[name] = (total + ms, runs + 1)

    def clear(self) -> None:
        """Forget all times, as after a warm-up."""
        self._found.clear()

    def worst(self, count: int | None = None) -> list[LayerTime]:
        """Return the layers with their times, the slowest first; the first `count` or all."""
        found = list(self._found.items())
        times = [LayerTime(name, total / runs, runs) for name, (total, runs) in found]
        return sorted(times, key=lambda time: -time.ms)[:count]


def watch(trt: Any, context: Any) -> LayerTimes:
    """Begin to measure the layers of an execution context; each run then waits for its end.

    Args:
        trt: TensorRT's module.
        context: opened without graphs, as a graph is one piece.
    """
    times = LayerTimes()

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    times.profiler = Profiler()
    context.profiler = times.profiler
    context.enqueue_emits_profile = True
    return times


def layers(trt: Any, engine: Any) -> list[Layer]:
    """Return the layers of an engine in their order.

    Args:
        trt: TensorRT's module.
        engine: of all its profiles; names of layers end with their profile if there are several.

    Raises:
        EngineError: TensorRT tells nothing that can be read.
    """
    inspector = engine.create_engine_inspector()
    return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> list[Layer]:
    """Return the layers in an engine inspector's JSON.

    Raises:
        EngineError: it is no such JSON.
    """
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as err:
        raise EngineError(
            f"TensorRT's inspector told {text[:80]!r}, wanted JSON with Layers; build the engine "
            "with a profiling verbosity other than NONE"
        ) from err
    return [_layer(entry) for entry in found]


def _layer(entry: Any) -> Layer:
    # An engine that was not built `detailed` has names only.
    if not isinstance(entry, dict):
        return Layer(str(entry))
    return Layer(
        entry.get("Name", ""), entry.get("LayerType", ""), _tensors(entry.get("Inputs", ())),
        _tensors(entry.get("Outputs", ())), entry,
    )  # fmt: skip


def _tensors(entries: Any) -> tuple[str, ...]:
    # The first key is of 10.x, the others, beside one for the format, are of 11.x.
    keys = ("Format/Datatype", "Datatype", "DataType")
    return tuple(
        " ".join([entry.get("Name", ""), *(entry[key] for key in keys if key in entry)])
        for entry in entries
    )
