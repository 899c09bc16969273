"""Settings from environment variables: read once, checked, frozen."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mesh.errors import SettingsError

S = TypeVar("S", bound=BaseSettings)


DEFAULT_RATIO = 0.01
"""Of requests without a trace context, where `OTEL_TRACES_SAMPLER` is not set."""


class TelemetrySettings(BaseSettings):
    """The standard variables that OpenTelemetry's SDK leaves to the program."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", frozen=True)

    service_name: str = ""
    """Empty: each service has its own name."""
    sdk_disabled: bool = False
    """No spans leave the process."""
    traces_sampler: str = ""
    """As the SDK takes it; empty: 1 % of the requests that bring no trace context of their own."""
    traces_sampler_arg: str = ""
    """Of a sampler by ratio."""
    traces_exporter: str = ""
    """`otlp` or `none`; empty: `otlp` where an endpoint is set."""
    exporter_otlp_endpoint: str = ""
    """Where spans go over OTLP/gRPC, as `http://jaeger:4317`."""
    exporter_otlp_traces_endpoint: str = ""
    """The same, for traces only."""
    span_link_count_limit: int | None = None
    """Links that a span keeps; None: enough for the largest batch."""
    bsp_max_queue_size: Annotated[int, Field(ge=1)] = 2048
    """Spans that wait to leave; one more is dropped and counted."""
    bsp_max_export_batch_size: Annotated[int, Field(ge=1)] = 512
    """Spans that leave together."""

    @property
    def exports(self) -> bool:
        """Tell whether spans go to an OTLP endpoint."""
        endpoint = self.exporter_otlp_endpoint or self.exporter_otlp_traces_endpoint
        wanted = self.traces_exporter == "otlp" or (not self.traces_exporter and bool(endpoint))
        return wanted and not self.sdk_disabled

    @property
    def off(self) -> bool:
        """Tell whether no request at all is to have a trace."""
        return self.sdk_disabled or self.traces_sampler.lower() == "always_off"

    @property
    def ratio(self) -> float:
        """The share of requests without a trace context that is traced."""
        name = self.traces_sampler.lower()
        if self.off or name.endswith("always_off"):
            return 0.0
        if not name:
            return DEFAULT_RATIO
        return _ratio(self.traces_sampler_arg) if name.endswith("traceidratio") else 1.0


def _ratio(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text or 1)))
    except ValueError:
        return 1.0  # as the SDK does


def _level(name: str) -> str:
    if name.upper() not in logging.getLevelNamesMapping():
        raise ValueError("wanted DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return name


def _count(given: Any) -> Any:
    return 0 if given == "auto" else given


Workers = Annotated[int, BeforeValidator(_count), Field(ge=0, le=256)]
"""How many worker processes; 0 or `auto`: by cores, as `mesh.cores` counts them."""


class ServiceSettings(BaseSettings):
    """What every service of the mesh can be told."""

    model_config = SettingsConfigDict(frozen=True)

    bind: str
    """Where gRPC is served: `host:port` or `unix:/path`."""
    models: Path = Path("models")
    """The model repository."""
    metrics_port: int = Field(0, ge=0, le=65535)
    """Where Prometheus metrics are served over HTTP; 0: nowhere."""
    drain_s: float = Field(20.0, gt=0)
    """After SIGTERM, seconds for what is under way; a second signal ends at once."""
    log_level: Annotated[str, AfterValidator(_level)] = "INFO"
    """Name of a level of `logging`."""


def load(kind: type[S]) -> S:
    """Read a settings class from its environment variables.

    Raises:
        SettingsError: a variable has a wrong value, is missing, or its prefix is ours and its
            name is not; the text names the variable.
    """
    prefix = kind.model_config.get("env_prefix", "")
    known = {f"{prefix}{name}".upper() for name in kind.model_fields}
    ours = {name for name in os.environ if prefix and name.startswith(prefix)}  # noqa: TID251
    unknown = sorted(ours - known) if prefix != "OTEL_" else []
    if unknown:
        raise SettingsError(f"unknown setting {unknown}; there are {sorted(known)}")
    try:
        return kind()
    except ValidationError as err:
        faults = "; ".join(
            f"{prefix}{'.'.join(map(str, e['loc']))}".upper()
            + f": {e['msg']}"
            + (f" (came {e['input']!r})" if e["type"] != "missing" else "")
            for e in err.errors()
        )
        raise SettingsError(faults) from err
