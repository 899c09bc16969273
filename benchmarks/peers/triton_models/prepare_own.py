"""Preprocessing with the mesh's own op: scaled decoding, uint8 into the graph."""

from typing import Any

import cv2
import triton_python_backend_utils as pb_utils

from mesh.tensor import bytes_tensor
from preprocess_svc.ops.center_crop import CenterCrop


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        cv2.setNumThreads(1)
        self.op = CenterCrop(size=(224, 224), resize=256)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        file = pb_utils.get_input_tensor_by_name(request, "input").as_numpy().item()
        pixels = self.op({"image": bytes_tensor(file)}, {}).tensors["pixels"]
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
