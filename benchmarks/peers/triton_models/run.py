"""The model step, a batch in one run: the wheel has no ONNX Runtime backend, so Python runs it."""

import json
from itertools import groupby
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from benchmarks.peers.apps.plain import Inputs, session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.session = session(config["parameters"]["path"]["string_value"])
        self.names = [tensor["name"] for tensor in config["input"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        parts = [self._inputs(request) for request in requests]
        answers = []
        for _, alike in groupby(parts, key=lambda part: part[self.names[0]].shape):
            answers += self._run(list(alike))
        return answers

    def _inputs(self, request: Any) -> Inputs:
        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.names
        }

    def _run(self, parts: list[Inputs]) -> list[Any]:
        batch = {name: np.concatenate([part[name] for part in parts]) for name in self.names}
        (logits,) = self.session.run(["logits"], batch)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits[index : index + 1])])
            for index in range(len(parts))
        ]
