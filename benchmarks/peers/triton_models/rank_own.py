"""Postprocessing with the mesh's own op."""

from typing import Any

import triton_python_backend_utils as pb_utils

from postprocess_svc.ops.top_k import TopK


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.op = TopK(k=5)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
        best = self.op({"logits": logits}, {}).tensors
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, best[name]) for name in ("classes", "scores")]
        )
