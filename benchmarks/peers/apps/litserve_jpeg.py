"""LitServe as its documentation writes it: base64 in JSON, one worker."""

import base64
import os
import sys
from typing import Any

import cv2
import litserve

from benchmarks.peers.apps.plain import Inputs, prepare, rank, session


class TopFive(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        cv2.setNumThreads(1)
        self.model = session(os.environ["BENCH_MODEL"])

    def decode_request(self, request: dict[str, str]) -> Inputs:
        return prepare(base64.b64decode(request["image"]))

    def predict(self, inputs: Inputs) -> Any:
        (logits,) = self.model.run(["logits"], inputs)
        return logits[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return rank(output)


if __name__ == "__main__":
    server = litserve.LitServer(TopFive(), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
