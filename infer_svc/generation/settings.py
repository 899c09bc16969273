"""How a model generates unless asked otherwise, and what a request may ask for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infer_svc.generation.rules import Rules
from infer_svc.generation.running import Prompt
from infer_svc.generation.sampling import LEAST_PENALTY, Sampling
from mesh.errors import InvalidInput, SettingsError
from mesh.validation import faults

FILE = "generation_config.json"

DEFAULT_TOP_K = 50
"""That transformers takes where a config samples and names none."""
Count = Annotated[int, Field(ge=0, lt=1 << 31)]

T = TypeVar("T")


class Parameters(BaseModel):
    """What a request may ask for, as JSON; what it does not name is the model's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    repetition_penalty: float | None = Field(default=None, ge=LEAST_PENALTY, le=100)


class GenerationConfig(BaseModel):
    """Hugging Face's `generation_config.json`, as far as it is used; the rest is not read.

    Beams are not searched: `num_beams` has no effect.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    decoder_start_token_id: Count | None = None
    eos_token_id: Count | list[Count] | None = None
    forced_bos_token_id: Count | None = None
    forced_eos_token_id: Count | None = None
    min_length: Count | None = None
    min_new_tokens: Count | None = None
    max_length: Count | None = None
    max_new_tokens: Count | None = None
    no_repeat_ngram_size: Count | None = None
    repetition_penalty: float | None = Field(default=None, ge=LEAST_PENALTY, le=100)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: Count | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)

    def check(self, vocabulary: int) -> None:
        """Compare the ids with the vocabulary.

        Raises:
            SettingsError: one is no token.
        """
        ends = self.eos_token_id
        ids = {
            "decoder_start_token_id": [self.decoder_start_token_id],
            "eos_token_id": ends if isinstance(ends, list) else [ends],
            "forced_bos_token_id": [self.forced_bos_token_id],
            "forced_eos_token_id": [self.forced_eos_token_id],
        }
        for name, values in ids.items():
            if any(value is not None and value >= vocabulary for value in values):
                raise SettingsError(f"{name} {values} came, the vocabulary has {vocabulary} tokens")

    def prompt(
        self,
        ids: Sequence[int],
        emitted: Sequence[int],
        asked: Parameters,
        room: int,
        *,
        encoded: bool,
        deadline: float,
        client: str,
    ) -> Prompt:
        """Return what a request wants.

        Args:
            ids: of its text.
            emitted: tokens that came already, where it goes on.
            asked: its parameters.
            room: ids that a cache holds.
            encoded: whether the text is for an encoder.
            deadline: as in `Prompt`.
            client: as in `Prompt`.
        """
        start = [self.decoder_start_token_id or 0] if encoded else ids
        stop = self.eos_token_id
        stops = [] if stop is None else [stop] if isinstance(stop, int) else stop
        least = self.min_new_tokens or max(0, (self.min_length or 0) - len(start))
        rules = Rules(
            frozenset(stops), least, self.no_repeat_ngram_size or 0,
            self.forced_bos_token_id, self.forced_eos_token_id,
        )  # fmt: skip
        return Prompt(
            start, asked.max_tokens or self._most(len(start), room), ids if encoded else (),
            emitted, rules, self._sampling(asked), deadline, client,
        )  # fmt: skip

    def _most(self, start: int, room: int) -> int:
        wanted = self.max_new_tokens or (self.max_length or start + room) - start
        return max(1, min(wanted, room - start))

    def _sampling(self, asked: Parameters) -> Sampling:
        random = self.do_sample or False
        return Sampling(
            _first(asked.temperature, _first(self.temperature, 1.0) if random else 0.0),
            _first(asked.top_k, _first(self.top_k, DEFAULT_TOP_K) if random else 0),
            _first(asked.top_p, self.top_p or 1.0 if random else 1.0),
            asked.seed,
            _first(asked.repetition_penalty, self.repetition_penalty or 1.0),
        )


def read_generation_config(version: Path) -> GenerationConfig:
    """Read the config in the folder of a model's version.

    Raises:
        SettingsError: it is missing or broken.
    """
    path = version / FILE
    try:
        return GenerationConfig.model_validate_json(path.read_bytes())
    except ValidationError as err:
        raise SettingsError(f"{path}: {faults(err, 'file')}") from err
    except OSError as err:
        raise SettingsError(f"{path} cannot be read: {err.strerror}") from err


def read_parameters(text: bytes) -> Parameters:
    """Read a request's parameters; none are the defaults.

    Raises:
        InvalidInput: they are no JSON object, or a value is not possible; the text says which.
    """
    try:
        return Parameters.model_validate(json.loads(text or b"{}"))
    except ValidationError as err:
        wanted = ", ".join(Parameters.model_fields)
        raise InvalidInput(f"{faults(err, 'parameters')}; there are {wanted}") from err
    except (ValueError, RecursionError) as err:
        raise InvalidInput(f"parameters are no JSON: {err}") from err


def _first(asked: T | None, default: T) -> T:
    return default if asked is None else asked
