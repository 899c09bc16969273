"""FastAPI + ONNX Runtime, as people write it: a file comes as a form, FastAPI's threads work."""

import os
from typing import Any

import cv2
from fastapi import FastAPI, UploadFile

from benchmarks.peers.apps.plain import prepare, rank, session

cv2.setNumThreads(1)
app = FastAPI()
model = session(os.environ["BENCH_MODEL"])


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, Any]:
    (logits,) = model.run(["logits"], prepare(file.file.read()))
    return rank(logits[0])
