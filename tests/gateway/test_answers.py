"""Typed calls become tensors that the ops take, and the ops' tensors become typed answers."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from gateway.answers import TYPED_CALLS
from gateway.service import CONTROL
from mesh.tensor import Tensors, bytes_tensor, unpack
from postprocess_svc.ops.nms import Nms
from postprocess_svc.ops.top_k import TopK
from protos.mesh.v1 import mesh_pb2


def ranking(*rows: tuple[float, int, bytes]) -> Tensors:
    """Return what op `top_k` makes."""
    return {
        "scores": np.array([[row[0] for row in rows]], np.float32),
        "classes": np.array([[row[1] for row in rows]], np.int64),
        "labels": bytes_tensor(*(row[2] for row in rows)).reshape(1, len(rows)),
    }


def detections(count: int, *rows: tuple[float, ...]) -> Tensors:
    """Return what op `nms` makes: `count` rows that tell something, then padding."""
    return {
        "num_detections": np.array([count], np.int32),
        "detections": np.array([rows], np.float32).reshape(1, len(rows), 6),
        "labels": bytes_tensor(*(b"label-%d" % i for i in range(len(rows)))).reshape(1, len(rows)),
    }


def answered(method: str, *answers: Tensors) -> Any:
    return TYPED_CALLS[method].response(list(answers))


def test_every_typed_method_of_the_service_is_in_the_table() -> None:
    methods = mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].methods_by_name
    others = {"Generate", "Run", "Stream", "ListPipelines", *CONTROL}
    assert TYPED_CALLS.keys() == set(methods) - others
    for name, call in TYPED_CALLS.items():
        assert call.request.DESCRIPTOR is methods[name].input_type


@pytest.mark.parametrize(
    ("method", "request_", "tensor"),
    [
        ("Detect", mesh_pb2.DetectRequest(images=[b"a", b""]), "image"),
        ("Classify", mesh_pb2.ClassifyRequest(images=[b"a", b""]), "image"),
        ("ClassifyText", mesh_pb2.ClassifyTextRequest(texts=["a", ""]), "text"),
    ],
    ids=["detect", "classify", "classify_text"],
)
def test_each_item_is_one_tensor_of_one_element(
    method: str, request_: Message, tensor: str
) -> None:
    payloads = TYPED_CALLS[method].items(request_)
    assert [unpack(payload)[tensor].tolist() for payload in payloads] == [[b"a"], [b""]]
    assert [list(unpack(payload)) for payload in payloads] == [[tensor], [tensor]]


def test_text_is_sent_as_utf_8() -> None:
    (payload,) = TYPED_CALLS["ClassifyText"].items(mesh_pb2.ClassifyTextRequest(texts=["où 語"]))
    assert unpack(payload)["text"].tolist() == ["où 語".encode()]


@pytest.mark.parametrize("method", ["Classify", "ClassifyText"])
def test_ranking_keeps_its_order_and_labels(method: str) -> None:
    response = answered(method, ranking((0.75, 2, b"zwei"), (0.25, 9, b"")))
    (result,) = response.results
    assert [(c.score, c.class_id, c.label) for c in result.categories] == [
        (0.75, 2, "zwei"), (0.25, 9, "")
    ]  # fmt: skip


def test_detections_are_as_many_as_were_found() -> None:
    rows = [(1, 2, 3, 4, 0.5, 7), (5, 6, 7, 8, 0.25, 3), (0, 0, 0, 0, 0, -1)]
    (result,) = answered("Detect", detections(2, *rows)).results
    assert [(d.x1, d.y1, d.x2, d.y2, d.score, d.class_id, d.label) for d in result.detections] == [
        (1, 2, 3, 4, 0.5, 7, "label-0"),
        (5, 6, 7, 8, 0.25, 3, "label-1"),
    ]


def test_nothing_found_is_an_empty_result_in_its_place() -> None:
    found = detections(1, (1, 2, 3, 4, 0.5, 7))
    response = answered("Detect", detections(0, (0, 0, 0, 0, 0, 0)), found, detections(0))
    assert [len(result.detections) for result in response.results] == [0, 1, 0]


def test_results_are_in_the_order_of_the_items() -> None:
    response = answered("Classify", *(ranking((0.5, number, b"")) for number in range(5)))
    assert [result.categories[0].class_id for result in response.results] == [0, 1, 2, 3, 4]


def test_outputs_of_the_ops_are_those_that_the_answers_read() -> None:
    """The gateway knows the ops by these names only."""
    assert {spec.name for spec in Nms(head="yolov8", classes=3).outputs} == detections(0).keys()
    assert {spec.name for spec in TopK().outputs} == ranking().keys()
