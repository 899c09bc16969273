"""Settings of the gateway, from variables that begin with `GATEWAY_`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.settings import ServiceSettings, Workers


class GatewaySettings(ServiceSettings):
    """What the gateway can be told."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True)

    bind: str = "127.0.0.1:8001"
    http: str = "127.0.0.1:8000"
    """Where the same is served over HTTP; empty: nowhere."""
    metrics_port: int = Field(8002, ge=0, le=65535)
    """Where Prometheus metrics are served over HTTP; 0: nowhere."""
    workers: Workers = 0
    """Data workers, that share the port; 0 or `auto`: one for every four cores."""
    preprocess: str = "127.0.0.1:8011"
    """Replicas: `host:port,…`, `unix:/path,…` or `dns:///name:port`."""
    infer: str = "127.0.0.1:8012"
    """Replicas, as above."""
    postprocess: str = "127.0.0.1:8013"
    """Replicas, as above."""
    max_waiting: int = Field(4096, ge=1)
    """Requests that wait for a stage in one data worker; one more is refused at once."""
    target_ms: float = Field(0.0, ge=0)
    """Latency to keep when more requests come than can be answered: those that would take longer
    are refused at once, with a hint when to come back. 0: they wait, up to `max_waiting`."""
    max_request_mbytes: int = Field(64, ge=1, le=1024)
    """Largest request and answer."""
    max_stream_items: int = Field(4096, ge=1)
    """Items of coalescing streams under way in one data worker; more are sent back."""
    slow_ms: int = Field(1000, ge=0)
    """A request that is not sampled and takes longer, or fails by a fault of ours, gets its trace
    afterwards; 0: none does."""
    trace_store: bool = True
    """Keep traces in memory for `trtmesh trace`, where no OTLP endpoint is set."""
    client_memory: bool = False
    """Whether clients may name shared memory of this machine in place of a tensor's bytes."""
    state: Path | None = None
    """File of SQLite that keeps routes and who changed them; without, they end with the gateway."""
    routes: Path | None = None
    """File of YAML with routes, watched; those of its pipelines are changed there only."""
    sockets: Path = Path("/tmp")
    """Folder where the gateway's processes find each other; who starts them sets it."""
    worker: int = Field(0, ge=0)
    """Which of the data workers a process is; who starts them sets it."""

    @property
    def control(self) -> str:
        """Where the control process listens."""
        return f"unix:{self.sockets}/control.sock"

    def inside(self, worker: int) -> str:
        """Return where a data worker listens for the control process."""
        return f"unix:{self.sockets}/worker-{worker}.sock"

    def targets(self) -> tuple[tuple[str, str], ...]:
        """Return the full name and the replicas of each stage, in the order of a request's way."""
        return (
            ("mesh.v1.Preprocess", self.preprocess),
            ("mesh.v1.Infer", self.infer),
            ("mesh.v1.Postprocess", self.postprocess),
        )
