"""Settings of postprocess_svc, from variables that begin with `POSTPROCESS_`."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.workers import StageSettings


class PostprocessSettings(StageSettings):
    """What postprocess_svc can be told."""

    model_config = SettingsConfigDict(env_prefix="POSTPROCESS_", frozen=True)

    bind: str = "127.0.0.1:8013"
    threads: int = Field(0, ge=0)
    """Threads that run ops; 0: they run in the event loop, as they are short and hold the GIL."""
    max_items: int = Field(256, ge=1)
    """Items waiting or running; more are sent back to be done elsewhere."""
    max_age_s: float = Field(float("inf"), gt=0)
    """A client's stream older than this moves to a new one, so that new replicas get traffic."""
