"""A model that generates, as the infer stage serves it: ids in, tokens out one by one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infer_svc.backends.errors import DeviceLost
from infer_svc.backends.machine import Machine
from infer_svc.config import ModelConfig
from infer_svc.generation.engines import open_stepper
from infer_svc.generation.metrics import GenerationMetrics
from infer_svc.generation.running import Finish, Prompt
from infer_svc.generation.scheduler import Scheduler
from infer_svc.generation.settings import (
    GenerationConfig,
    Parameters,
    read_generation_config,
    read_parameters,
)
from infer_svc.generation.stepper import Stepper
from infer_svc.metrics import ModelMetrics, reason_of
from mesh.errors import DeadlineExceeded, EngineError, InvalidInput, SettingsError
from mesh.item import Reply, Request, Timings
from mesh.tensor import Array, Tensors, TensorSpec, bytes_tensor, pack, unpack

INPUTS = (
    TensorSpec("input_ids", "INT64", (1, -1)),
    TensorSpec("attention_mask", "INT64", (1, -1)),
)
OUTPUTS = (TensorSpec("token_ids", "INT64", (-1,)),)
FINISH = "finish_reason"
"""In the last reply only."""
_HEAD = pack({"token_ids": np.zeros(1, np.int64)})[:-8]
"""Of a reply with one token, which follows in 8 bytes. Packed once for thousands a second."""


class Generator:
    """Answers one request with a reply for each token.

    Inputs are `input_ids` and `attention_mask` INT64[1, N], 1 for ids that count; parameters are
    those of `infer_svc.generation.settings.Parameters`; `token_ids` INT64[M] in the request's
    context came already, where it goes on after another replica. Each reply has `token_ids`
    INT64[1]; the last one, without any, `finish_reason` BYTES[1].

    Args:
        name: of the model.
        version: of the model.
        stepper: runs its steps.
        config: of the model.
        served: counts requests.
        loop: of whoever asks.
        lost: called in the event loop when only a new process helps.
    """

    def __init__(
        self,
        name: str,
        version: int,
        stepper: Stepper,
        config: GenerationConfig,
        served: ModelMetrics,
        loop: asyncio.AbstractEventLoop,
        lost: Callable[[str], None],
    ) -> None:
        self._name = name
        self._config = config
        self._served = served
        self._room = stepper.length
        self._encoded = stepper.source_length > 0

        def tell_lost(reason: str) -> None:
            loop.call_soon_threadsafe(lost, reason)

        self.stepper = stepper
        """The scheduler's, whose thread calls it while a generation is under way."""
        self._scheduler = scheduler = Scheduler(stepper, loop, lost=tell_lost)
        self.metrics = GenerationMetrics(
            (name, str(version)),
            {
                "slots": lambda: stepper.slots, "busy": lambda: scheduler.busy,
                "waiting": lambda: scheduler.waiting, "cache_bytes": lambda: stepper.cache_bytes,
            },
        )  # fmt: skip

    async def run(
        self, request: Request, tensors: Tensors, key: Sequence[Any] = (), rows: int = 1
    ) -> Reply:
        """Generate; a handler of the infer stage.

        Args:
            request: with its parameters, and `emit` for the replies before the last one.
            tensors: as `INPUTS`.
            key: not used.
            rows: not used.

        Raises:
            MeshError: as `Scheduler.run` does, or the parameters cannot be used.
        """
        asked = read_parameters(request.parameters)
        prompt = self._prompt(request, tensors, asked)
        count = len(prompt.emitted)

        def emit(token: int) -> None:
            nonlocal count
            count += 1
            if request.emit is not None:
                payload = _HEAD + token.to_bytes(8, "little", signed=True)
                request.emit(Reply(payload, more=True))

        try:
            finish = await self._scheduler.run(prompt, emit)
        except BaseException as err:
            self._fail(err)
            raise
        read = tensors["input_ids"].shape[1]
        self.metrics.finished(finish, read, count - len(prompt.emitted))
        queue_s, run_s = finish.admitted - finish.asked, finish.ended - finish.admitted
        self._served.batch(requests=1, rows=1, queue_s=queue_s, run_s=run_s)
        self._served.answered(1, queue_s + run_s)
        return self._last(finish, prompt, read, count)

    def is_stuck(self, hang_s: float) -> bool:
        """Tell whether a step has not ended for so many seconds."""
        return self._scheduler.is_stuck(hang_s)

    def close(self) -> None:
        """End the thread; what is under way or waits goes on at another replica."""
        self._scheduler.close()

    def _prompt(self, request: Request, tensors: Tensors, asked: Parameters) -> Prompt:
        ids, mask = tensors["input_ids"], tensors["attention_mask"]
        if ids.shape != mask.shape:
            raise InvalidInput(
                f"input_ids {list(ids.shape)} and attention_mask {list(mask.shape)} came, wanted "
                "one of each for each id"
            )
        client = request.caller or request.client
        return self._config.prompt(
            ids[mask != 0].tolist(), _emitted(request.context), asked, self._room,
            encoded=self._encoded, deadline=request.deadline, client=client,
        )  # fmt: skip

    def _last(self, finish: Finish, prompt: Prompt, read: int, made: int) -> Reply:
        tokens = np.zeros(0, np.int64)
        reply = Reply(pack({"token_ids": tokens, FINISH: bytes_tensor(finish.reason.encode())}))
        reply.timings = Timings(finish.admitted - finish.asked, 0.0, finish.ended - finish.admitted)
        sampling = prompt.sampling
        reply.attributes = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "trtmesh",
            "gen_ai.request.model": self._name,
            "gen_ai.request.max_tokens": prompt.tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.response.finish_reasons": (finish.reason,),
            "gen_ai.usage.input_tokens": read,
            "gen_ai.usage.output_tokens": made,
            "mesh.generation.first_token_s": round(finish.first - finish.asked, 6),
        }
        return reply

    def _fail(self, error: BaseException) -> None:
        late = "deadline" if isinstance(error, DeadlineExceeded) else "error"
        gone = isinstance(error, asyncio.CancelledError)
        self.metrics.finishes["cancelled" if gone else late] += 1
        self._served.failed(1, reason_of(error))


def open_generator(
    config: ModelConfig,
    version: Path,
    machine: Machine,
    served: ModelMetrics,
    loop: asyncio.AbstractEventLoop,
    lost: Callable[[str], None] = lambda reason: None,
) -> Generator:
    """Load a version's files.

    Args:
        config: of the model.
        version: its folder.
        machine: what it may use.
        served: counts requests.
        loop: of whoever asks.
        lost: called in the event loop when only a new process helps.

    Raises:
        SettingsError: a file is missing or broken.
        DeviceLost: only a new process helps.
    """
    generation = read_generation_config(version)
    try:
        stepper = open_stepper(version, config, machine)
        generation.check(stepper.vocabulary)
        if stepper.source_length and generation.decoder_start_token_id is None:
            raise SettingsError(f"the generation config in {version} has no decoder_start_token_id")
        warm_up(stepper)
    except DeviceLost:
        raise
    except EngineError as err:
        raise SettingsError(f"model {config.name!r}: {err}") from err
    return Generator(config.name, int(version.name), stepper, generation, served, loop, lost)


def with_tensors(config: ModelConfig) -> ModelConfig:
    """Return a config with the tensors that every model that generates has.

    Raises:
        SettingsError: it names others.
    """
    for kind, given, ours in (
        ("inputs", config.inputs, INPUTS), ("outputs", config.outputs, OUTPUTS),
    ):  # fmt: skip
        if given and given != ours:
            raise SettingsError(
                f"model {config.name!r}: config.pbtxt has the {kind} {[*map(str, given)]}, a model "
                f"that generates has {[*map(str, ours)]}; leave them out"
            )
    return replace(config, inputs=INPUTS, outputs=OUTPUTS)


def warm_up(stepper: Stepper) -> None:
    """Run a step of one slot and one of all.

    Raises:
        EngineError: one failed.
    """
    if stepper.source_length:
        stepper.begin(0, [0])
    for rows in (1, stepper.slots):
        stepper.put([0] * rows, [0] * rows)
        stepper.take()


def _emitted(context: bytes) -> list[int]:
    tensors = unpack(context)
    if not tensors:
        return []
    emitted: Array | None = tensors.get("token_ids")
    if emitted is None or emitted.dtype != np.int64 or emitted.ndim != 1:
        raise InvalidInput(f"context {sorted(tensors)} came, wanted token_ids INT64[-1] or nothing")
    return [int(token) for token in emitted]
