"""Preprocessing as Triton's documentation writes it: each request by itself, numpy normalizes."""

from typing import Any

import cv2
import triton_python_backend_utils as pb_utils

from benchmarks.peers.apps.plain import prepare


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        cv2.setNumThreads(1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        file = pb_utils.get_input_tensor_by_name(request, "input").as_numpy().item()
        return pb_utils.InferenceResponse([pb_utils.Tensor("x0", prepare(file)["x0"])])
