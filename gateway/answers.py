"""Typed calls: images and texts to tensors, tensors to typed answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from mesh.item import Reply
from mesh.tensor import Tensors, bytes_tensor, pack, unpack
from protos.mesh.v1 import mesh_pb2


@dataclass(frozen=True)
class TypedCall:
    """How one typed call is expressed in tensors."""

    task: str
    """Of the pipelines that can answer it."""
    request: type[Any]
    """Message with `pipeline` and the items."""
    items: Callable[[Any], list[bytes]]
    """Returns the payloads of a request's items."""
    response: Callable[[list[Tensors]], Message]
    """Makes the response from the answer of each item."""


def _images(request: mesh_pb2.DetectRequest | mesh_pb2.ClassifyRequest) -> list[bytes]:
    return [pack({"image": bytes_tensor(image)}) for image in request.images]


def _texts(request: mesh_pb2.ClassifyTextRequest) -> list[bytes]:
    return [pack({"text": bytes_tensor(text.encode())}) for text in request.texts]


def _detections(answer: Tensors) -> mesh_pb2.Detections:
    """Return one picture's boxes from the outputs of op `nms`."""
    rows = answer["detections"][0].tolist()
    labels = answer["labels"][0].tolist()
    result = mesh_pb2.Detections()
    for row, label in list(zip(rows, labels, strict=True))[: int(answer["num_detections"][0])]:
        x1, y1, x2, y2, score, class_id = row
        result.detections.add(
            x1=x1, y1=y1, x2=x2, y2=y2, score=score, class_id=int(class_id), label=label.decode()
        )
    return result


def _ranking(answer: Tensors) -> mesh_pb2.Ranking:
    """Return one item's categories from the outputs of op `top_k`."""
    columns = (answer[name][0].tolist() for name in ("scores", "classes", "labels"))
    result = mesh_pb2.Ranking()
    for score, class_id, label in zip(*columns, strict=True):
        result.categories.add(score=score, class_id=class_id, label=label.decode())
    return result


def generate_parameters(request: mesh_pb2.GenerateRequest) -> bytes:
    """Return the parameters that a request has set, as JSON."""
    names = (
        "max_tokens", "temperature", "top_k", "top_p", "seed", "repetition_penalty",
    )  # fmt: skip
    values: dict[str, Any] = {
        name: getattr(request, name) for name in names if request.HasField(name)
    }
    if request.stop:
        values["stop"] = list(request.stop)
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def text_of(reply: Reply) -> str:
    """Return what a reply of a generation adds to its text."""
    return bytes(unpack(reply.payload)["text"][0]).decode()


def generate_end(reply: Reply) -> mesh_pb2.GenerateResponse:
    """Return the last response of a generation: the text has been told."""
    tensors = unpack(reply.payload)
    return mesh_pb2.GenerateResponse(
        finish_reason=bytes(tensors["finish_reason"][0]).decode(),
        prompt_tokens=int(tensors["prompt_tokens"][0]),
        completion_tokens=int(tensors["completion_tokens"][0]),
        model_version=reply.version,
    )


TYPED_CALLS = {
    "Detect": TypedCall(
        "detect", mesh_pb2.DetectRequest, _images,
        lambda answers: mesh_pb2.DetectResponse(results=map(_detections, answers)),
    ),
    "Classify": TypedCall(
        "classify", mesh_pb2.ClassifyRequest, _images,
        lambda answers: mesh_pb2.ClassifyResponse(results=map(_ranking, answers)),
    ),
    "ClassifyText": TypedCall(
        "classify_text", mesh_pb2.ClassifyTextRequest, _texts,
        lambda answers: mesh_pb2.ClassifyTextResponse(results=map(_ranking, answers)),
    ),
}  # fmt: skip
