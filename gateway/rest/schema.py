"""What comes as JSON, as the page `/docs` shows it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, bool | int | float | str]


class Input(BaseModel):
    """A tensor of a request."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    datatype: str
    """Open Inference Protocol name, as `FP32` or `BYTES`."""
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] | None = None
    """Nested or flat; None: it comes after the JSON, as `binary_data_size` says."""


class Output(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    parameters: Parameters = {}
    """`binary_data`, `classification`."""


class Inference(BaseModel):
    """The request of `/infer`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = ""
    parameters: Parameters = {}
    """`priority`, `timeout` in microseconds, `binary_data_output`, or what a pipeline knows."""
    inputs: list[Input]
    outputs: list[Output] = []
    """None: all."""


class Generation(BaseModel):
    """The request of `/generate` and `/generate_stream`; parameters may stand beside the text."""

    model_config = ConfigDict(extra="allow")

    text_input: str
    parameters: dict[str, Any] = {}
    id: str = ""
    stream: bool = False
    """Not needed: the route says it."""


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Completion(BaseModel):
    """The request of OpenAI's `/v1/completions`, as far as models here can answer it.

    What is left out is as the model's generation config says.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: str | list[str]
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """Not in OpenAI's API."""
    repetition_penalty: float | None = None
    """Not in OpenAI's API."""
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=1)
    best_of: int = Field(1, ge=1, le=1)
    echo: bool = False
    user: str = ""
    """Not looked at."""
    logprobs: None = None
    logit_bias: None = None
    suffix: None = None
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    presence_penalty: float = Field(0.0, ge=0, le=0)


class Texts(BaseModel):
    """The request of `/v1/classify_text`."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str]
    pipeline: str = ""
    """Empty: the only one whose task it is."""


class LoadParameters(BaseModel):
    """The request of a load: both may be left out."""

    model_config = ConfigDict(extra="forbid")

    parameters: dict[str, Any] = {}
    """`config`, a text of JSON, and `file:<version>/<name>`, in base64."""


class UnloadParameters(BaseModel):
    """The request of an unload."""

    model_config = ConfigDict(extra="forbid")

    parameters: dict[str, bool] = {}
    """`unload_dependents`: of an ensemble, its steps' models too."""


class IndexRequest(BaseModel):
    """The request of the repository's index."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = False
    """Only what serves."""
