"""What is asked of queues, statistics, the index, and models that come and go.

Each case leaves the models as it found them.
"""

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import service_pb2 as oip

from tests.e2e.conformance.calls import (
    Case,
    Given,
    Outcome,
    attempt,
    floats,
    get,
    infer,
    infer_path,
    infer_request,
    json_input,
    plain,
    post,
    raw_of,
    rpc,
    stream,
    stub,
    told,
    web,
)
from tests.e2e.conformance.models import write_late
from tests.e2e.conformance.servers import Server

LIMIT_S = 60
HOLD_MS = 600
"""How long Triton's twin of the slow model takes; a mesh's, as long as the machine needs."""
X = json_input("x", "FP32", [1, 4], [0, 1, 2, 3])
OURS_ALONE = ".model"
"""Ends names in a mesh's index of models that a pipeline has the name of."""


def cases() -> Iterator[tuple[str, Case]]:
    """Yield all by their names."""
    yield from ((case.__name__.replace("_", " "), case) for case in ALL)


def load(server: Server, name: str, **parameters: Any) -> Outcome:
    """Load a model over gRPC."""
    request = oip.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        kind = "bytes_param" if isinstance(value, bytes) else "string_param"
        setattr(request.parameters[key], kind, value)
    with stub(server) as made:
        return attempt(lambda: plain(made.RepositoryModelLoad(request, timeout=LIMIT_S)))


def unload(server: Server, name: str, *, parts: bool = False) -> Outcome:
    """Unload a model over gRPC."""
    request = oip.RepositoryModelUnloadRequest(model_name=name)
    if parts:
        request.parameters["unload_dependents"].bool_param = True
    with stub(server) as made:
        return attempt(lambda: plain(made.RepositoryModelUnload(request, timeout=LIMIT_S)))


def is_ready(server: Server, name: str, version: str = "") -> Outcome:
    """Tell whether a model is ready."""
    answer = rpc(server, "ModelReady", oip.ModelReadyRequest(name=name, version=version))
    return answer.get("ready", answer.get("error", False))


def wait(server: Server, name: str, ready: bool) -> None:
    """Wait until a model is ready or is not: an unload goes on behind its answer."""
    end = time.monotonic() + LIMIT_S
    while is_ready(server, name) is not ready:
        if time.monotonic() > end:
            raise TimeoutError(f"{name} is not {'ready' if ready else 'unloaded'}")
        time.sleep(0.05)


def state(server: Server, name: str) -> Outcome:
    """Return what the index tells of a model, and of a reason only whether there is one."""
    index = rpc(server, "RepositoryIndex", oip.RepositoryIndexRequest())
    return [
        [one.get("version", ""), one.get("state", ""), bool(one.get("reason"))]
        for one in index["models"]
        if one.get("name") == name
    ]


def statistics(server: Server, name: str, version: str = "") -> Outcome:
    """Return the statistics of a model."""
    request = oip.ModelStatisticsRequest(name=name, version=version)
    return rpc(server, "ModelStatistics", request)


def counted(server: Server, name: str) -> list[int]:
    """Return the inferences, executions, successes and failures of a model's first version."""
    (one,) = statistics(server, name)["model_stats"][:1]
    own = one.get("inference_stats", {})
    return [
        int(one.get("inference_count", 0)), int(one.get("execution_count", 0)),
        *(int(own.get(name, {}).get("count", 0)) for name in ("success", "fail")),
    ]  # fmt: skip


def counted_by(server: Server, name: str, *requests: Any) -> list[int]:
    """Return by how much requests raise a model's counts."""
    before = counted(server, name)
    for request in requests:
        infer(server, request)
    return [new - old for new, old in zip(counted(server, name), before, strict=True)]


def slow(milliseconds: int, **parameters: Any) -> Any:
    """Ask the model that takes its time."""
    given = Given("x", "INT64", [1, 1], raw_of("INT64", [milliseconds]))
    return infer_request("slow", given, **parameters)


def queue_timeout_that_passes(server: Server) -> Outcome:
    return _late(server, timeout=1000)


def queue_timeout_where_the_policy_has_none(server: Server) -> Outcome:
    return _late(server, timeout=1000, priority=1)


def _late(server: Server, **parameters: Any) -> Outcome:
    """One runs, the other waits for longer than it may."""
    with stub(server) as made:
        first = made.ModelInfer.future(slow(HOLD_MS))
        time.sleep(0.05)  # the first is taken out of the queue meanwhile
        second = slow(1, **parameters)
        answer = attempt(lambda: told(made.ModelInfer(second, timeout=LIMIT_S)))
        return [bool(first.result().outputs), answer]


def http_queue_timeout_that_passes(server: Server) -> Outcome:
    given = json_input("x", "INT64", [1, 1], [1])
    body = {"inputs": [given], "parameters": {"timeout": 1000}}
    with stub(server) as made:
        first = made.ModelInfer.future(slow(HOLD_MS))
        time.sleep(0.05)  # as above
        second = post(server, infer_path("slow"), body)
        return [bool(first.result().outputs), second]


def queue_that_is_full(server: Server) -> Outcome:
    """One runs, one waits, and there is no place for a third."""
    with stub(server) as made:
        first = made.ModelInfer.future(slow(HOLD_MS))
        time.sleep(0.05)  # as above
        second = made.ModelInfer.future(slow(1))
        time.sleep(0.03)
        third = attempt(lambda: told(made.ModelInfer(slow(1), timeout=LIMIT_S)))
        return [bool(first.result().outputs), bool(second.result().outputs), third]


def http_queue_that_is_full(server: Server) -> Outcome:
    body = {"inputs": [json_input("x", "INT64", [1, 1], [1])]}
    with stub(server) as made:
        first = made.ModelInfer.future(slow(HOLD_MS))
        time.sleep(0.05)  # as above
        second = made.ModelInfer.future(slow(1))
        time.sleep(0.03)
        third = post(server, infer_path("slow"), body)
        return [bool(first.result().outputs), bool(second.result().outputs), third]


def stream_while_the_queue_is_full(server: Server) -> Outcome:
    with stub(server) as made:
        first = made.ModelInfer.future(slow(HOLD_MS))
        time.sleep(0.05)  # as above
        second = made.ModelInfer.future(slow(1))
        time.sleep(0.03)
        third = stream(server, slow(1, key="c"))
        return [bool(first.result().outputs), bool(second.result().outputs), third]


def order_of_a_stream_whose_first_is_slow(server: Server) -> Outcome:
    fast = infer_request("spare", floats(), key="fast")
    return [one.get("id") for one in stream(server, slow(HOLD_MS, key="slow"), fast)]


def statistics_count_requests_and_rows(server: Server) -> Outcome:
    return counted_by(
        server, "add", *(infer_request("add", floats("left", 3), floats("right", 3)),) * 2
    )


def statistics_count_failures_of_the_model(server: Server) -> Outcome:
    bad = Given("x", "INT64", [1, 1], raw_of("INT64", [9]))
    return counted_by(server, "lookup", infer_request("lookup", bad))


def statistics_count_requests_that_were_refused(server: Server) -> Outcome:
    return counted_by(server, "spare", infer_request("spare", floats(columns=5)))


def statistics_of_an_ensemble(server: Server) -> Outcome:
    request = infer_request("chain", floats("left", 2), floats("right", 2))
    return [counted_by(server, "chain", request), counted_by(server, "add", request)]


def statistics_of_a_pipeline(server: Server) -> Outcome:
    return counted_by(
        server, "piped", infer_request("piped", floats("left", 2), floats("right", 2))
    )


def statistics_of_the_model_of_a_pipeline(server: Server) -> Outcome:
    return counted_by(server, "add", infer_request("piped", floats("left", 2), floats("right", 2)))


def statistics_tell_times(server: Server) -> Outcome:
    infer(server, slow(20))
    (one,) = statistics(server, "slow")["model_stats"]
    own = one["inference_stats"]
    return {
        name: int(own.get(name, {}).get("ns", 0)) > 0
        for name in ("success", "queue", "compute_infer")
    }


def statistics_tell_when_the_last_was(server: Server) -> Outcome:
    infer(server, infer_request("spare", floats()))
    (one,) = statistics(server, "spare")["model_stats"]
    return abs(int(one.get("last_inference", 0)) / 1e3 - time.time()) < LIMIT_S


def statistics_tell_of_batch_sizes(server: Server) -> Outcome:
    infer(server, infer_request("spare", floats(rows=5)))
    (one,) = statistics(server, "spare")["model_stats"]
    return "5" in [batch.get("batch_size") for batch in one.get("batch_stats", [])]


def statistics_of_each_version(server: Server) -> Outcome:
    return [one["version"] for one in statistics(server, "versions")["model_stats"]]


def statistics_of_one_version(server: Server) -> Outcome:
    return [one["version"] for one in statistics(server, "versions", "3")["model_stats"]]


def statistics_of_an_unknown_model(server: Server) -> Outcome:
    return statistics(server, "nobody")


def statistics_of_an_unknown_version(server: Server) -> Outcome:
    return statistics(server, "versions", "2")


def statistics_of_a_version_of_no_model(server: Server) -> Outcome:
    return sorted(statistics(server, "", "1"))


def statistics_of_all_models(server: Server) -> Outcome:
    return sorted(
        {one["name"].removesuffix(OURS_ALONE) for one in statistics(server, "")["model_stats"]}
    )


def http_statistics_have_fields(server: Server) -> Outcome:
    (one,) = get(server, "/v2/models/spare/stats")["body"]["model_stats"]
    return [sorted(one), sorted(one["inference_stats"])]


def index_of_all_models(server: Server) -> Outcome:
    index = rpc(server, "RepositoryIndex", oip.RepositoryIndexRequest())
    return sorted([one["name"], one.get("version"), one.get("state")] for one in index["models"])


def index_of_what_is_ready(server: Server) -> Outcome:
    index = rpc(server, "RepositoryIndex", oip.RepositoryIndexRequest(ready=True))
    return {one.get("state") for one in index["models"]} == {"READY"}


def index_of_an_unknown_repository(server: Server) -> Outcome:
    request = oip.RepositoryIndexRequest(repository_name="nowhere")
    answer = rpc(server, "RepositoryIndex", request)
    return answer if "error" in answer else bool(answer.get("models"))


def http_index_has_fields(server: Server) -> Outcome:
    index = post(server, "/v2/repository/index")["body"]
    return sorted(next(one for one in index if one["name"] == "spare"))


def http_index_of_what_is_ready(server: Server) -> Outcome:
    index = post(server, "/v2/repository/index", {"ready": True})
    return [index["status"], {one["state"] for one in index["body"]} == {"READY"}]


def http_index_of_no_JSON(server: Server) -> Outcome:
    return post(server, "/v2/repository/index", b"{")["status"]


def http_index_with_an_unknown_field(server: Server) -> Outcome:
    return post(server, "/v2/repository/index", {"color": "blue"})["status"]


def load_of_an_unknown_model(server: Server) -> Outcome:
    return load(server, "nobody")


def load_without_a_name(server: Server) -> Outcome:
    return load(server, "")


def load_of_a_path_beside_the_repository(server: Server) -> Outcome:
    """Whether what is outside of the repository can be loaded: one that is given back is gone."""
    name = f"../{server.repository.name}/spare"
    answer = load(server, name)
    if "error" not in answer:
        unload(server, name)
    return answer


def files_that_come_with_a_name_that_is_a_path(server: Server) -> Outcome:
    """Whether a client can have files written where it likes."""
    folder = server.repository.parent / f"{server.repository.name}-written"
    config = json.dumps(_config(server, "spare") | {"name": str(folder)})
    answer = load(server, str(folder), config=config, **{"file:1/model.x": b"x"})
    try:
        return ["error" in answer, folder.exists()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def index_after_loads_that_failed(server: Server) -> Outcome:
    load(server, "nobody")
    load(server, "")
    index = rpc(server, "RepositoryIndex", oip.RepositoryIndexRequest())["models"]
    return sorted({"", "nobody"} & {one.get("name", "") for one in index})


def unload_of_an_unknown_model(server: Server) -> Outcome:
    return unload(server, "nobody")


def http_load_of_an_unknown_model(server: Server) -> Outcome:
    return post(server, "/v2/repository/models/nobody/load")


def http_unload_of_an_unknown_model(server: Server) -> Outcome:
    return post(server, "/v2/repository/models/nobody/unload")


def http_load_of_no_JSON(server: Server) -> Outcome:
    return post(server, "/v2/repository/models/spare/load", b"{")


def http_load_with_unknown_fields(server: Server) -> Outcome:
    return post(server, "/v2/repository/models/spare/load", {"color": "blue"})


def http_load_with_an_unknown_parameter(server: Server) -> Outcome:
    body = {"parameters": {"color": "blue"}}
    return post(server, "/v2/repository/models/spare/load", body)


def http_load_with_a_file_that_is_no_base64(server: Server) -> Outcome:
    body = {"parameters": {"config": "{}", "file:1/model.x": "?"}}
    return post(server, "/v2/repository/models/spare/load", body)["status"] >= 400


def load_with_an_unknown_parameter(server: Server) -> Outcome:
    return load(server, "spare", color="blue")


def load_of_a_model_that_serves(server: Server) -> Outcome:
    return [load(server, "spare"), state(server, "spare"), _serves(server, "spare")]


def unload_and_load(server: Server) -> Outcome:
    found = [unload(server, "spare")]
    wait(server, "spare", False)
    end = time.monotonic() + LIMIT_S
    while "UNLOADING" in str(state(server, "spare")) and time.monotonic() < end:
        time.sleep(0.05)
    found += [state(server, "spare"), load(server, "spare"), state(server, "spare")]
    return [*found, _serves(server, "spare")]


def http_unload_and_load(server: Server) -> Outcome:
    found = [post(server, "/v2/repository/models/spare/unload")]
    wait(server, "spare", False)
    found.append(post(server, "/v2/repository/models/spare/load", {}))
    return [*found, _serves(server, "spare")]


def unload_twice(server: Server) -> Outcome:
    unload(server, "spare")
    wait(server, "spare", False)
    again = unload(server, "spare")
    load(server, "spare")
    return again


def _unloaded(server: Server, ask: Any) -> Outcome:
    """Ask while a model is not loaded."""
    unload(server, "spare")
    wait(server, "spare", False)
    try:
        return ask()
    finally:
        load(server, "spare")
        wait(server, "spare", True)


def infer_of_an_unloaded_model(server: Server) -> Outcome:
    return _unloaded(server, lambda: infer(server, infer_request("spare", floats())))


def infer_of_a_version_of_an_unloaded_model(server: Server) -> Outcome:
    request = infer_request("spare", floats(), version="1")
    return _unloaded(server, lambda: infer(server, request))


def http_infer_of_an_unloaded_model(server: Server) -> Outcome:
    return _unloaded(server, lambda: post(server, infer_path("spare"), {"inputs": [X]}))


def stream_of_an_unloaded_model(server: Server) -> Outcome:
    request = infer_request("spare", floats(), key="a")
    return _unloaded(server, lambda: stream(server, request))


def metadata_of_an_unloaded_model(server: Server) -> Outcome:
    request = oip.ModelMetadataRequest(name="spare")
    return _unloaded(server, lambda: rpc(server, "ModelMetadata", request))


def config_of_an_unloaded_model(server: Server) -> Outcome:
    request = oip.ModelConfigRequest(name="spare")
    return _unloaded(server, lambda: rpc(server, "ModelConfig", request))


def statistics_of_an_unloaded_model(server: Server) -> Outcome:
    return _unloaded(server, lambda: statistics(server, "spare"))


def http_ready_of_an_unloaded_model(server: Server) -> Outcome:
    return _unloaded(server, lambda: web(server, "GET", "/v2/models/spare/ready").status)


def server_is_ready_without_one_model(server: Server) -> Outcome:
    return _unloaded(server, lambda: web(server, "GET", "/v2/health/ready").status)


def index_of_what_is_ready_without_one_model(server: Server) -> Outcome:
    def ask() -> Outcome:
        index = rpc(server, "RepositoryIndex", oip.RepositoryIndexRequest(ready=True))
        return "spare" in [one.get("name") for one in index["models"]]

    return _unloaded(server, ask)


def counts_after_a_model_is_loaded_anew(server: Server) -> Outcome:
    infer(server, infer_request("spare", floats()))
    _unloaded(server, lambda: None)
    return counted(server, "spare")


def load_with_another_config(server: Server) -> Outcome:
    found = [load(server, "spare", config=_smaller(server))]
    try:
        found.append(_config(server, "spare")["max_batch_size"])
        found.append(infer(server, infer_request("spare", floats(rows=5))))
    finally:
        load(server, "spare")
    found.append(_config(server, "spare")["max_batch_size"])
    _renew(server)
    return found


def http_load_with_another_config(server: Server) -> Outcome:
    body = {"parameters": {"config": _smaller(server)}}
    found = [post(server, "/v2/repository/models/spare/load", body)]
    found.append(_config(server, "spare")["max_batch_size"])
    load(server, "spare")
    found.append(_config(server, "spare")["max_batch_size"])
    _renew(server)
    return found


def load_with_a_config_that_is_none(server: Server) -> Outcome:
    return [load(server, "spare", config="{"), _serves(server, "spare")]


def load_with_a_config_that_cannot_be_served(server: Server) -> Outcome:
    config = _config(server, "spare")
    config["input"][0]["data_type"] = "TYPE_INVALID"
    return [load(server, "spare", config=json.dumps(config)), _serves(server, "spare")]


def load_with_a_file_and_no_config(server: Server) -> Outcome:
    return [load(server, "spare", **{"file:1/model.x": b"x"}), _serves(server, "spare")]


def load_of_a_model_from_a_request(server: Server) -> Outcome:
    """The file and the config come with the request, in place of the repository."""
    file = next(path for path in (server.repository / "spare/1").iterdir() if path.is_file())
    config = json.dumps(_config(server, "spare") | {"name": "brought"})
    answer = load(server, "brought", config=config, **{f"file:1/{file.name}": file.read_bytes()})
    try:
        return [answer, state(server, "brought"), _serves(server, "brought")]
    finally:
        unload(server, "brought")


def load_of_a_model_that_was_copied_into_the_repository(server: Server) -> Outcome:
    write_late(server.repository)
    found = [load(server, "late"), _serves(server, "late")]
    unload(server, "late")
    wait(server, "late", False)
    return found


def load_of_a_model_with_a_broken_config(server: Server) -> Outcome:
    path = server.repository / "spare/config.pbtxt"
    before = path.read_text()
    path.write_text("nothing {")
    try:
        answer = load(server, "spare")
        return [answer, _serves(server, "spare"), state(server, "spare")]
    finally:
        path.write_text(before)
        load(server, "spare")
        wait(server, "spare", True)


def unload_of_an_ensemble_with_its_parts(server: Server) -> Outcome:
    found = [unload(server, "chain", parts=True)]
    wait(server, "chain", False)
    found += [_soon_gone(server, "same_fp32"), load(server, "chain")]
    found += [is_ready(server, name) for name in ("chain", "same_fp32", "add")]
    for name in ("add", "piped"):
        load(server, name)
        wait(server, name, True)
    return found


def unload_of_a_part_of_an_ensemble(server: Server) -> Outcome:
    found = [unload(server, "same_fp32")]
    wait(server, "same_fp32", False)
    try:
        request = infer_request("chain", floats("left"), floats("right"))
        return [*found, is_ready(server, "chain"), infer(server, request)]
    finally:
        load(server, "same_fp32")
        load(server, "chain")
        wait(server, "chain", True)


def unload_of_the_model_of_a_pipeline(server: Server) -> Outcome:
    found = [unload(server, "add")]
    wait(server, "add", False)
    try:
        request = infer_request("piped", floats("left"), floats("right"))
        return [*found, is_ready(server, "piped"), infer(server, request)]
    finally:
        for name in ("add", "piped", "chain"):
            load(server, name)
            wait(server, name, True)


def _serves(server: Server, name: str) -> Outcome:
    answer = infer(server, infer_request(name, floats()))
    return answer.get("error", "answers")


def _soon_gone(server: Server, name: str) -> bool:
    """Tell whether a model goes away within a second."""
    end = time.monotonic() + 1
    while (there := is_ready(server, name)) is True and time.monotonic() < end:
        time.sleep(0.05)
    return there is not True


def _renew(server: Server) -> None:
    """Have the repository's config served again: Triton keeps the one that came with a request."""
    path = server.repository / "spare/config.pbtxt"
    path.write_text(path.read_text() + "\n")
    load(server, "spare")


def _smaller(server: Server) -> str:
    """Return the config of `spare` with smaller batches."""
    config = _config(server, "spare") | {"max_batch_size": 4, "dynamic_batching": {}}
    return json.dumps(config)


def _config(server: Server, name: str) -> Any:
    return rpc(server, "ModelConfig", oip.ModelConfigRequest(name=name))["config"]


ALL = (
    queue_timeout_that_passes, queue_timeout_where_the_policy_has_none,
    http_queue_timeout_that_passes, queue_that_is_full, http_queue_that_is_full,
    stream_while_the_queue_is_full, order_of_a_stream_whose_first_is_slow,
    statistics_count_requests_and_rows, statistics_count_failures_of_the_model,
    statistics_count_requests_that_were_refused, statistics_of_an_ensemble,
    statistics_of_a_pipeline, statistics_of_the_model_of_a_pipeline, statistics_tell_times,
    statistics_tell_when_the_last_was, statistics_tell_of_batch_sizes, statistics_of_each_version,
    statistics_of_one_version, statistics_of_an_unknown_model, statistics_of_an_unknown_version,
    statistics_of_a_version_of_no_model, statistics_of_all_models, http_statistics_have_fields,
    index_of_all_models, index_of_what_is_ready, index_of_an_unknown_repository,
    http_index_has_fields, http_index_of_what_is_ready, http_index_of_no_JSON,
    http_index_with_an_unknown_field, load_of_an_unknown_model,
    unload_of_an_unknown_model, http_load_of_an_unknown_model, http_unload_of_an_unknown_model,
    http_load_of_no_JSON, http_load_with_unknown_fields, http_load_with_an_unknown_parameter,
    http_load_with_a_file_that_is_no_base64, load_with_an_unknown_parameter,
    load_of_a_model_that_serves, unload_and_load, http_unload_and_load, unload_twice,
    infer_of_an_unloaded_model, infer_of_a_version_of_an_unloaded_model,
    http_infer_of_an_unloaded_model, stream_of_an_unloaded_model, metadata_of_an_unloaded_model,
    config_of_an_unloaded_model, statistics_of_an_unloaded_model, http_ready_of_an_unloaded_model,
    server_is_ready_without_one_model, index_of_what_is_ready_without_one_model,
    counts_after_a_model_is_loaded_anew, load_with_another_config, http_load_with_another_config,
    load_with_a_config_that_is_none, load_with_a_config_that_cannot_be_served,
    load_with_a_file_and_no_config, load_of_a_model_from_a_request,
    load_of_a_model_that_was_copied_into_the_repository, load_of_a_model_with_a_broken_config,
    unload_of_an_ensemble_with_its_parts, unload_of_a_part_of_an_ensemble,
    unload_of_the_model_of_a_pipeline, load_of_a_path_beside_the_repository,
    files_that_come_with_a_name_that_is_a_path, load_without_a_name,
    index_after_loads_that_failed,
)  # fmt: skip
