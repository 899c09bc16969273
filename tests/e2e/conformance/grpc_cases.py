"""What is asked over gRPC."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.utils import shared_memory

from tests.e2e.conformance.calls import (
    LIMIT_S,
    Case,
    Given,
    Outcome,
    attempt,
    bytes_of,
    floats,
    infer,
    infer_request,
    raw_of,
    rpc,
    stream,
    stub,
    texts,
    told,
)
from tests.e2e.conformance.models import DTYPES
from tests.e2e.conformance.servers import Server

INF = float("inf")
VALUES: Mapping[str, tuple[list[Any], str]] = {
    "BOOL": ([True, False], "bool_contents"), "UINT8": ([0, 255], "uint_contents"),
    "UINT16": ([0, 65535], "uint_contents"), "UINT32": ([0, 2**32 - 1], "uint_contents"),
    "UINT64": ([0, 2**64 - 1], "uint64_contents"), "INT8": ([-128, 127], "int_contents"),
    "INT16": ([-(2**15), 2**15 - 1], "int_contents"),
    "INT32": ([-(2**31), 2**31 - 1], "int_contents"),
    "INT64": ([-(2**63), 2**63 - 1], "int64_contents"),
    "FP16": ([1.5, -INF], "fp32_contents"), "FP32": ([1.5, -0.0], "fp32_contents"),
    "FP64": ([1e-300, 2.5], "fp64_contents"), "BYTES": ([b"", "grün".encode()], "bytes_contents"),
    "BF16": ([0x3F80, 0xC000], "fp32_contents"),
}  # fmt: skip
"""Values of each type, and the field of typed contents."""
ONE = struct.pack("<4f", 0, 1, 2, 3)
ZEROS = {"fp32_contents": [0.0] * 4}
REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 16}


def one(*shape: int, dtype: str = "FP32", raw: bytes | None = None, name: str = "x") -> Given:
    """Return an input of zeros."""
    size = 4 * int(np.prod(shape)) if all(side >= 0 for side in shape) else 16
    return Given(name, dtype, shape, bytes(size) if raw is None else raw)


def number(value: int) -> Given:
    """Return an input of one whole number."""
    return Given("x", "INT64", [1, 1], raw_of("INT64", [value]))


def typed(dtype: str, values: list[Any], field: str, shape: tuple[int, ...] = (1, 2)) -> Given:
    """Return an input with typed contents."""
    return Given("x", dtype, shape, None, {field: values})


def both(**more: Any) -> tuple[Given, Given]:
    """Return the inputs of `add`."""
    return floats("left", **more), floats("right", **more)


def many(text: bytes = b"hi") -> list[Given]:
    """Return the inputs of `kinds`."""
    return [
        Given("half", "FP16", [1, 2], raw_of("FP16", [0.5, 2.0])),
        Given("number", "INT64", [1, 2], raw_of("INT64", [-1, 7])),
        Given("flag", "BOOL", [1, 2], raw_of("BOOL", [True, False])),
        Given("text", "BYTES", [1, 2], bytes_of(text, b"")),
    ]


def with_raws(request: Any, *raws: bytes) -> Any:
    """Put other raw contents into a request."""
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(raws)
    return request


def classes(model: str, count: Any, rows: int = 1, name: str = "y") -> Any:
    """Ask for classes of numbers that rise."""
    return infer_request(model, floats(rows=rows), outputs=[(name, {"classification": count})])


def _typed(values: list[Any], field: str = "fp32_contents", dtype: str = "FP32") -> Any:
    return infer_request(f"same_{dtype.lower()}", typed(dtype, values, field))


DATE = Given("text", "BYTES", [1], bytes_of(b"27 novembre 2026"))
REQUESTS: dict[str, Any] = {
    "two inputs": infer_request("add", *both(rows=2)),
    "full batch": infer_request("add", *both(rows=8)),
    "batch too large": infer_request("add", *both(rows=9)),
    "batch of no rows": infer_request("add", *both(rows=0)),
    "inputs with different rows": infer_request("add", floats("left"), floats("right", 2)),
    "no batch dimension": infer_request("spare", one(4)),
    "dimension too large": infer_request("spare", one(1, 5)),
    "one dimension too many": infer_request("spare", one(1, 4, 1)),
    "scalar shape": infer_request("spare", one(raw=bytes(4))),
    "negative size": infer_request("spare", one(-1, 4)),
    "sizes whose product overflows": infer_request("spare", one(2**40, 2**40, raw=b"")),
    "model without batches": infer_request("single", one(3)),
    "model without batches, with one": infer_request("single", one(1, 3)),
    "model without batches, wrong size": infer_request("single", one(4)),
    "free size": infer_request("loose", one(5, 2)),
    "free size of 0": infer_request("loose", one(0, 2)),
    "free size beside a wrong one": infer_request("loose", one(5, 3)),
    "free size of 0 in a batch": infer_request("same_fp32", one(1, 0)),
    "wrong datatype": infer_request("spare", one(1, 4, dtype="INT32")),
    "unknown datatype": infer_request("spare", one(1, 4, dtype="FP99")),
    "no datatype": infer_request("spare", one(1, 4, dtype="")),
    "datatype in small letters": infer_request("spare", one(1, 4, dtype="fp32")),
    "unknown input": infer_request("spare", one(1, 4, name="z")),
    "input without a name": infer_request("spare", one(1, 4, name="")),
    "missing input": infer_request("add", floats("left")),
    "one input too many": infer_request("spare", floats(), floats("more")),
    "input twice": infer_request("spare", floats(), floats()),
    "inputs in another order": infer_request("add", *reversed(both())),
    "no inputs": infer_request("spare"),
    "empty request": oip.ModelInferRequest(),
    "model without a name": infer_request("", floats()),
    "unknown model": infer_request("nobody", floats()),
    "version": infer_request("versions", floats(), version="1"),
    "newest version": infer_request("versions", floats()),
    "unknown version": infer_request("versions", floats(), version="2"),
    "version that is no number": infer_request("versions", floats(), version="abc"),
    "version -1": infer_request("versions", floats(), version="-1"),
    "version 01": infer_request("versions", floats(), version="01"),
    "version with an unknown model": infer_request("nobody", floats(), version="1"),
    "ensemble": infer_request("chain", *both()),
    "ensemble, batch too large": infer_request("chain", *both(rows=9)),
    "pipeline of a model": infer_request("piped", *both(rows=2)),
    "failure inside the model": infer_request("lookup", number(9)),
    "raw contents too short": infer_request("spare", one(1, 4, raw=bytes(12))),
    "raw contents too long": infer_request("spare", one(1, 4, raw=bytes(20))),
    "raw contents empty": infer_request("spare", one(1, 4, raw=b"")),
    "no contents": infer_request("spare", Given("x", "FP32", [1, 4])),
    "raw contents for one of two inputs": with_raws(infer_request("add", *both()), ONE),
    "more raw contents than inputs": with_raws(infer_request("spare", floats()), ONE, ONE),
    "raw and typed contents": infer_request(
        "spare", Given("x", "FP32", [1, 4], ONE, ZEROS)
    ),
    "raw contents of one input, typed ones of the other": with_raws(
        infer_request("add", floats("left"), Given("right", "FP32", [1, 4], None, ZEROS)), ONE
    ),
    "too few typed elements": _typed([1.0]),
    "too many typed elements": _typed([1.0] * 3),
    "typed contents of another type": _typed([1, 2], "int64_contents"),
    "typed contents beyond the type": _typed([300, 0], "int_contents", "INT8"),
    "FP16 that is infinite or no number": infer_request(
        "same_fp16", Given("x", "FP16", [1, 2], raw_of("FP16", [INF, float("nan")]))
    ),
    "FP32 that is infinite or no number": infer_request(
        "same_fp32", Given("x", "FP32", [1, 2], raw_of("FP32", [INF, float("nan")]))
    ),
    "several kinds": infer_request("kinds", *many()),
    "BYTES of several rows": infer_request(
        "same_bytes", Given("x", "BYTES", [2, 1], bytes_of(b"a", b"bcd"))
    ),
    "BYTES with fewer elements than their shape": infer_request(
        "same_bytes", Given("x", "BYTES", [1, 3], bytes_of(b"a", b"b"))
    ),
    "BYTES with more elements than their shape": infer_request(
        "same_bytes", Given("x", "BYTES", [1, 1], bytes_of(b"a", b"b"))
    ),
    "BYTES that end within an element": infer_request(
        "same_bytes", Given("x", "BYTES", [1, 1], struct.pack("<I", 9) + b"abc")
    ),
    "BYTES that end within a length": infer_request(
        "same_bytes", Given("x", "BYTES", [1, 1], b"\x01\x00")
    ),
    "BYTES that are no text": infer_request("same_bytes", texts("x", b"\xff\xfe")),
    "BYTES with a zero": infer_request("same_bytes", texts("x", b"a\x00b", b"\x00")),
    "BYTES without elements": infer_request("same_bytes", Given("x", "BYTES", [1, 0], b"")),
    "one of four outputs": infer_request("kinds", *many(), outputs=["number_out"]),
    "outputs in another order": infer_request("kinds", *many(), outputs=["text_out", "half_out"]),
    "output twice": infer_request("kinds", *many(), outputs=["flag_out", "flag_out"]),
    "unknown output": infer_request("kinds", *many(), outputs=["nothing"]),
    "known and unknown output": infer_request("kinds", *many(), outputs=["flag_out", "nothing"]),
    "output without a name": infer_request("kinds", *many(), outputs=[""]),
    "id": infer_request("spare", floats(), key="request 7 ü"),
    "unknown parameter of text": infer_request("spare", floats(), color="blue"),
    "unknown parameter of each other kind": infer_request("spare", floats(), a=1, b=True, c=1.5),
    "unknown parameter of an input": infer_request(
        "spare", Given("x", "FP32", [1, 4], ONE, None, {"color": "blue"})
    ),
    "unknown parameter of an output": infer_request(
        "spare", floats(), outputs=[("y", {"color": "blue"})]
    ),
    "priority": infer_request("slow", number(0), priority=1),
    "priority beyond the levels": infer_request(
        "slow", number(0), priority=3
    ),
    "priority 0": infer_request("slow", number(0), priority=0),
    "negative priority": infer_request(
        "slow", number(0), priority=-1
    ),
    "priority of a model without levels": infer_request("spare", floats(), priority=5),
    "priority as text": infer_request("spare", floats(), priority="1"),
    "timeout": infer_request("slow", number(0), timeout=5_000_000),
    "timeout 0": infer_request("slow", number(0), timeout=0),
    "negative timeout": infer_request("spare", floats(), timeout=-5),
    "timeout as text": infer_request("spare", floats(), timeout="5"),
    "timeout of a model without a queue policy": infer_request(
        "spare", floats(), timeout=5_000_000
    ),
    "sequence of a model without sequences": infer_request(
        "spare", floats(), sequence_id=5, sequence_start=True, sequence_end=False
    ),
    "sequence id of text": infer_request("spare", floats(), sequence_id="five"),
    "reserved parameter": infer_request("spare", floats(), triton_something="x"),
    "parameter binary_data_output": infer_request("spare", floats(), binary_data_output=True),
    "two classes": classes("spare", 2),
    "classes of two rows": classes("spare", 3, 2),
    "more classes than there are": classes("spare", 9),
    "classes with labels": classes("labelled", 4),
    "no classes": classes("spare", 0),
    "fewer than no classes": classes("spare", -1),
    "count of classes as text": classes("spare", "2"),
    "classes without a batch dimension": infer_request(
        "single", Given("x", "FP32", [3], ONE[:12]), outputs=[("y", {"classification": 2})]
    ),
    "classes that are equal": infer_request(
        "spare", one(1, 4), outputs=[("y", {"classification": 4})]
    ),
    "classes of whole numbers": infer_request(
        "kinds", *many(), outputs=[("number_out", {"classification": 1})]
    ),
    "classes of FP16": infer_request(
        "kinds", *many(), outputs=[("half_out", {"classification": 1})]
    ),
    "classes of BOOL": infer_request(
        "kinds", *many(), outputs=[("flag_out", {"classification": 1})]
    ),
    "classes that are no number": infer_request(
        "same_fp32", Given("x", "FP32", [1, 2], raw_of("FP32", [float("nan"), 1])),
        outputs=[("y", {"classification": 2})],
    ),
    "input in shared memory that is not registered": infer_request(
        "spare",
        Given("x", "FP32", [1, 4], None, None, REGION),
    ),
    "output in shared memory that is not registered": infer_request(
        "spare", floats(), outputs=[("y", REGION)]
    ),
    "model that generates": infer_request("dates", DATE),
}  # fmt: skip
"""Requests of `ModelInfer`, by what is special."""

NAMES = {
    "model": ("add", ""), "model without batches": ("single", ""), "free size": ("loose", ""),
    "several kinds": ("kinds", ""), "versions": ("versions", ""), "one version": ("versions", "1"),
    "unknown version": ("versions", "2"), "version that is no number": ("versions", "abc"),
    "ensemble": ("chain", ""), "pipeline of a model": ("piped", ""),
    "model with priorities": ("slow", ""), "model with labels": ("labelled", ""),
    "unknown model": ("nobody", ""), "no name": ("", ""),
}  # fmt: skip
TWINS = ("platform", "backend", "default_model_filename")
"""Fields that differ because the models run on different backends."""
FILLED = ("optimization", "preferred_batch_size", "instance_group", "model_transaction_policy")
"""Fields of a config that are compared in cases of their own."""


def without(value: Any, names: tuple[str, ...]) -> Any:
    """Return plain values without some fields."""
    if isinstance(value, dict):
        return {name: without(one, names) for name, one in value.items() if name not in names}
    return [without(one, names) for one in value] if isinstance(value, list) else value


def cases() -> Iterator[tuple[str, Case]]:
    """Yield all by their names."""
    for name, request in REQUESTS.items():
        yield f"infer: {name}", partial(infer, request=request)
    for dtype in DTYPES:
        values, field = VALUES[dtype]
        model = f"same_{dtype.lower()}"
        raw = infer_request(model, Given("x", dtype, [1, 2], raw_of(dtype, values)))
        yield f"infer: {dtype} raw", partial(infer, request=raw)
        own = infer_request(model, typed(dtype, values, field))
        yield f"infer: {dtype} typed", partial(infer, request=own)
    for name, (model, version) in NAMES.items():
        ready = oip.ModelReadyRequest(name=model, version=version)
        yield f"ModelReady: {name}", partial(rpc, method="ModelReady", request=ready)
        metadata = oip.ModelMetadataRequest(name=model, version=version)
        yield f"ModelMetadata: {name}", partial(_told, method="ModelMetadata", request=metadata)
        config = oip.ModelConfigRequest(name=model, version=version)
        yield f"ModelConfig: {name}", partial(_told, method="ModelConfig", request=config)
    yield from ((case.__name__.replace("_", " "), case) for case in OTHERS)


def _told(server: Server, method: str, request: Any) -> Outcome:
    return without(rpc(server, method, request), TWINS + FILLED)


def server_is_live_and_ready(server: Server) -> Outcome:
    with triton.InferenceServerClient(server.grpc) as client:
        return [client.is_server_live(), client.is_server_ready()]


def server_metadata_extensions(server: Server) -> Outcome:
    told_ = rpc(server, "ServerMetadata", oip.ServerMetadataRequest())
    return sorted(told_) + sorted(told_["extensions"])


def platform_of_models_tells_ensembles_from_others(server: Server) -> Outcome:
    return {
        name: rpc(server, "ModelMetadata", oip.ModelMetadataRequest(name=name))["platform"]
        == "ensemble"
        for name in ("add", "chain", "piped")
    }


def config_names_a_backend_or_platform(server: Server) -> Outcome:
    found = {}
    for name in ("add", "chain", "piped"):
        config = rpc(server, "ModelConfig", oip.ModelConfigRequest(name=name))["config"]
        ensemble = config.get("platform") == "ensemble"
        found[name] = [
            "ensemble" if ensemble else "own",
            bool(config.get("backend")),
            bool(config.get("default_model_filename")),
        ]
    return found


def config_fills_in_optimization(server: Server) -> Outcome:
    return _filled(server, "add").get("optimization")


def config_fills_in_preferred_batch_sizes(server: Server) -> Outcome:
    return _filled(server, "add")["dynamic_batching"]


def config_names_groups_of_instances(server: Server) -> Outcome:
    return _filled(server, "add")["instance_group"]


def config_of_an_ensemble_tells_whether_it_is_decoupled(server: Server) -> Outcome:
    return _filled(server, "chain").get("model_transaction_policy")


def _filled(server: Server, name: str) -> Any:
    return rpc(server, "ModelConfig", oip.ModelConfigRequest(name=name))["config"]


def metadata_of_a_pipeline_that_generates(server: Server) -> Outcome:
    made = rpc(server, "ModelMetadata", oip.ModelMetadataRequest(name="dates"))
    return without(made, TWINS)


def grpc_health_check(server: Server) -> Outcome:
    return _health(server, "")


def grpc_health_check_of_a_model(server: Server) -> Outcome:
    return _health(server, "piped")


def grpc_health_check_of_an_unknown_name(server: Server) -> Outcome:
    return _health(server, "nobody")


def grpc_health_watch(server: Server) -> Outcome:
    with grpc.insecure_channel(server.grpc) as channel:
        made: Any = health_pb2_grpc.HealthStub(channel)
        call = made.Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        return attempt(lambda: next(call).status)


def _health(server: Server, name: str) -> Outcome:
    with grpc.insecure_channel(server.grpc) as channel:
        made: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=name)
        return attempt(lambda: made.Check(request, timeout=LIMIT_S).status)


def unknown_method(server: Server) -> Outcome:
    return _raw_call(server, "Nothing", b"")


def message_that_is_none(server: Server) -> Outcome:
    return _raw_call(server, "ModelInfer", b"\xff\xff\xff")


def _raw_call(server: Server, method: str, message: bytes) -> Outcome:
    with grpc.insecure_channel(server.grpc) as channel:
        call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return attempt(lambda: len(call(message, timeout=LIMIT_S)))


def status_of_shared_memory(server: Server) -> Outcome:
    return rpc(server, "SystemSharedMemoryStatus", oip.SystemSharedMemoryStatusRequest())


def unregister_of_all_shared_memory(server: Server) -> Outcome:
    return rpc(server, "SystemSharedMemoryUnregister", oip.SystemSharedMemoryUnregisterRequest())


def names_of_trace_settings(server: Server) -> Outcome:
    return _names(rpc(server, "TraceSetting", oip.TraceSettingRequest()))


def trace_settings_of_an_unknown_model(server: Server) -> Outcome:
    return _names(rpc(server, "TraceSetting", oip.TraceSettingRequest(model_name="nobody")))


def unknown_trace_setting(server: Server) -> Outcome:
    request = oip.TraceSettingRequest()
    request.settings["color"].value.append("blue")
    return _names(rpc(server, "TraceSetting", request))


def names_of_log_settings(server: Server) -> Outcome:
    return _names(rpc(server, "LogSettings", oip.LogSettingsRequest()))


def unknown_log_setting(server: Server) -> Outcome:
    request = oip.LogSettingsRequest()
    request.settings["color"].string_param = "blue"
    return _names(rpc(server, "LogSettings", request))


def _names(answer: Any) -> Outcome:
    return sorted(answer["settings"]) if "settings" in answer else answer


def shared_memory_that_is_not_there(server: Server) -> Outcome:
    return _register(server, "none", "/conformance-none")


def unregister_of_unknown_shared_memory(server: Server) -> Outcome:
    request = oip.SystemSharedMemoryUnregisterRequest(name="none")
    return rpc(server, "SystemSharedMemoryUnregister", request)


def shared_memory_in_and_out(server: Server) -> Outcome:
    """A tensor comes and goes in a region; its status, and what is registered twice."""
    with region() as (key, area):
        shared_memory.set_shared_memory_region(area, [np.frombuffer(ONE, np.float32)])
        found = [_register(server, "here", key)]
        try:
            found += [_register(server, "here", key)]
            status = rpc(server, "SystemSharedMemoryStatus", oip.SystemSharedMemoryStatusRequest())
            found += [without(status, ("key",))]
            found += [infer(server, _in_region("here", 0, 16)), _after(area)]
            found += [
                infer(server, _in_region("here", 24, 16)),
                infer(server, _in_region("here", 0, 8)),
            ]
        finally:
            found += [rpc(server, "SystemSharedMemoryUnregister", _gone("here"))]
        return [*found, infer(server, _in_region("here", 0, 16))]


def _in_region(name: str, offset: int, size: int) -> Any:
    """Ask for an inference whose input lies in a region, and whose output goes behind it."""
    own = {"shared_memory_region": name, "shared_memory_byte_size": size}
    given = Given("x", "FP32", [1, 4], None, None, own | {"shared_memory_offset": offset})
    out = own | {"shared_memory_byte_size": 16, "shared_memory_offset": 16}
    return infer_request("spare", given, outputs=[("y", out)])


def _gone(name: str) -> Any:
    return oip.SystemSharedMemoryUnregisterRequest(name=name)


def _register(server: Server, name: str, key: str) -> Outcome:
    request = oip.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=0, byte_size=32)
    return rpc(server, "SystemSharedMemoryRegister", request)


def _after(area: Any) -> Outcome:
    made = shared_memory.get_contents_as_numpy(area, np.float32, [8])
    return made[4:].tolist()


@contextmanager
def region() -> Iterator[tuple[str, Any]]:
    """Give a region of 32 bytes and its key."""
    key = f"/conformance-{os.getpid()}"
    area = shared_memory.create_shared_memory_region("here", key, 32)
    try:
        yield key, area
    finally:
        shared_memory.destroy_shared_memory_region(area)


def message_compressed_with_gzip(server: Server) -> Outcome:
    return _compressed(server, grpc.Compression.Gzip)


def message_compressed_with_deflate(server: Server) -> Outcome:
    return _compressed(server, grpc.Compression.Deflate)


def _compressed(server: Server, kind: grpc.Compression) -> Outcome:
    with stub(server, kind) as made:
        return attempt(lambda: told(made.ModelInfer(infer_request("spare", floats(rows=8)))))


def message_of_20_megabytes(server: Server) -> Outcome:
    raw = np.arange(5_000_000, dtype=np.float32).tobytes()
    request = infer_request("same_fp32", Given("x", "FP32", [1, 5_000_000], raw))

    def same(response: Any) -> bool:
        return bool(response.raw_output_contents[0] == raw)

    return rpc(server, "ModelInfer", request, same)


def deadline_of_the_client(server: Server) -> Outcome:
    given = number(500)
    with stub(server) as made:
        request = infer_request("slow", given)
        return attempt(lambda: told(made.ModelInfer(request, timeout=0.05)))


def client_reads_arrays(server: Server) -> Outcome:
    arrays = {
        "half": np.array([[0.5, 2.0]], np.float16), "number": np.array([[-1, 7]], np.int64),
        "flag": np.array([[True, False]]), "text": np.array([["grün".encode(), b""]], np.object_),
    }  # fmt: skip
    inputs = []
    for given in many():
        tensor = triton.InferInput(given.name, [1, 2], given.dtype)
        tensor.set_data_from_numpy(arrays[given.name])
        inputs.append(tensor)
    with triton.InferenceServerClient(server.grpc) as client:
        result = client.infer("kinds", inputs, request_id="r", priority=1, timeout=9_000_000)
    found = [result.as_numpy(f"{name}_out") for name in arrays]
    return [[str(array.dtype), str(array.tolist())] for array in found]


def stream_of_one_request(server: Server) -> Outcome:
    return stream(server, infer_request("spare", floats(), key="a"))


def stream_without_requests(server: Server) -> Outcome:
    return stream(server)


def stream_of_three_requests(server: Server) -> Outcome:
    return stream(server, *(infer_request("spare", floats(), key=key) for key in "abc"))


def stream_that_asks_for_an_empty_final_response(server: Server) -> Outcome:
    request = infer_request("spare", floats(), key="a", triton_enable_empty_final_response=True)
    return stream(server, request)


def stream_with_a_failure_goes_on(server: Server) -> Outcome:
    bad = infer_request("spare", one(1, 5), key="bad")
    return stream(server, bad, infer_request("spare", floats(), key="good"))


def stream_with_an_unknown_model(server: Server) -> Outcome:
    return stream(server, infer_request("nobody", floats(), key="a"))


def stream_with_a_failure_inside_the_model(server: Server) -> Outcome:
    given = number(9)
    return stream(server, infer_request("lookup", given, key="a"))


def stream_that_asks_for_errors_as_a_status(server: Server) -> Outcome:
    request = infer_request("nobody", floats(), key="a")
    return stream(server, request, metadata=[("triton_grpc_error", "true")])


def stream_that_asks_for_outputs(server: Server) -> Outcome:
    return stream(server, infer_request("kinds", *many(), outputs=["number_out"]))


def stream_of_a_generation(server: Server) -> Outcome:
    return _generated(server)


def stream_of_a_generation_with_an_empty_final_response(server: Server) -> Outcome:
    return _generated(server, triton_enable_empty_final_response=True)


def _generated(server: Server, **parameters: Any) -> Outcome:
    answers = stream(server, infer_request("dates", DATE, key="a", **parameters))
    outputs = [{name: values for name, _, __, values in one["outputs"]} for one in answers]
    return {
        "text": "".join(one["text"][0] for one in outputs if one),
        "final": sorted({one["parameters"]["triton_final_response"] for one in answers[:-1]}),
        "last": answers[-1]["parameters"],
        "ids": sorted({one.get("id", "") for one in answers}),
        "outputs of the last": sorted(outputs[-1]),
        "shapes": sorted({str(shape) for one in answers for _, __, shape, ___ in one["outputs"]}),
    }


OTHERS = (
    server_is_live_and_ready, server_metadata_extensions,
    platform_of_models_tells_ensembles_from_others, config_names_a_backend_or_platform,
    config_fills_in_optimization, config_fills_in_preferred_batch_sizes,
    config_names_groups_of_instances, config_of_an_ensemble_tells_whether_it_is_decoupled,
    metadata_of_a_pipeline_that_generates, grpc_health_check, grpc_health_check_of_a_model,
    grpc_health_check_of_an_unknown_name, grpc_health_watch, unknown_method, message_that_is_none,
    status_of_shared_memory, unregister_of_all_shared_memory,
    names_of_trace_settings, trace_settings_of_an_unknown_model, unknown_trace_setting,
    names_of_log_settings, unknown_log_setting, shared_memory_that_is_not_there,
    unregister_of_unknown_shared_memory, shared_memory_in_and_out,
    message_compressed_with_gzip, message_compressed_with_deflate, message_of_20_megabytes,
    deadline_of_the_client, client_reads_arrays, stream_of_one_request, stream_without_requests,
    stream_of_three_requests, stream_that_asks_for_an_empty_final_response,
    stream_with_a_failure_goes_on, stream_with_an_unknown_model,
    stream_with_a_failure_inside_the_model, stream_that_asks_for_errors_as_a_status,
    stream_that_asks_for_outputs, stream_of_a_generation,
    stream_of_a_generation_with_an_empty_final_response,
)  # fmt: skip
