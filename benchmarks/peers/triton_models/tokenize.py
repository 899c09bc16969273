"""Tokenizing as Triton's documentation writes it: a Hugging Face tokenizer, each text by itself."""

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from benchmarks.peers.apps.plain import Tokens


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.tokens = Tokens(parameters["tokenizer"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "input").as_numpy().item()
        prepared = self.tokens.prepare(text)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in prepared.items()])
