"""FastAPI + a Hugging Face tokenizer + ONNX Runtime, as people write it."""

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.apps.plain import Tokens, rank, session


class Question(BaseModel):
    text: str


app = FastAPI()
tokens = Tokens(os.environ["BENCH_TOKENIZER"])
model = session(os.environ["BENCH_MODEL"])


@app.post("/predict")
def predict(question: Question) -> dict[str, Any]:
    (logits,) = model.run(["logits"], tokens.prepare(question.text.encode()))
    return rank(logits[0], 3)
