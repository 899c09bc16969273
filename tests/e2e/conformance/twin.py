"""The models of `models.py` for Triton's Python backend, which takes each by its name."""

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

ANSWER = "2026-11-27"
TABLE = np.array([0, 10, 20, 30], np.float32)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.name, self.version = args["model_name"], int(args["model_version"])
        config = json.loads(args["model_config"])
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if self.name == "dates":
            for request in requests:
                _write(request)
            return None
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = [pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs]
        return pb_utils.InferenceResponse(self._run(given))

    def _run(self, given: list[Any]) -> list[Any]:
        if self.name == "same_bf16":  # numpy has no such type
            return [pb_utils.Tensor.from_dlpack("y", given[0].to_dlpack())]
        arrays = [one.as_numpy() for one in given]
        if self.name == "add":
            arrays = [arrays[0] + arrays[1]]
        elif self.name == "versions":
            arrays = [arrays[0] + np.float32(self.version)]
        elif self.name == "lookup":
            arrays = [TABLE[arrays[0]]]
        elif self.name == "slow":
            time.sleep(int(arrays[0].max()) / 1e3)
        return [
            pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)
        ]


def _write(request: Any) -> None:
    """Answer bit by bit, as a mesh does: the last response has no text and why it ended."""
    sender = request.get_response_sender()
    for piece in ANSWER[:4], ANSWER[4:]:
        sender.send(_piece(piece, "", 0))
    sender.send(_piece("", "stop", 10), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _piece(text: str, reason: str, count: int) -> Any:
    made = [pb_utils.Tensor("text", np.array([text.encode()], np.object_))]
    if reason:
        made.append(pb_utils.Tensor("finish_reason", np.array([reason.encode()], np.object_)))
        for name in ("prompt_tokens", "completion_tokens"):
            made.append(pb_utils.Tensor(name, np.array([count], np.int64)))
    return pb_utils.InferenceResponse(made)
