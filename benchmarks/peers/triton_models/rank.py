"""Postprocessing as Triton's documentation writes it: each request by itself."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from benchmarks.peers.apps.plain import rank


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.k = int(parameters["k"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
        best = rank(logits[0], self.k)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("classes", np.array([best["classes"]], np.int32)),
                pb_utils.Tensor("scores", np.array([best["scores"]], np.float32)),
            ]
        )
