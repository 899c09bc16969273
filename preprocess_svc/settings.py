"""Settings of preprocess_svc, from variables that begin with `PREPROCESS_`."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.workers import StageSettings


class PreprocessSettings(StageSettings):
    """What preprocess_svc can be told."""

    model_config = SettingsConfigDict(env_prefix="PREPROCESS_", frozen=True)

    bind: str = "127.0.0.1:8011"
    threads: int = Field(1, ge=0)
    """Threads that run ops; more processes scale better, as Python's part holds the GIL. 0: in the
    event loop."""
    max_items: int = Field(256, ge=1)
    """Items waiting or running; more are sent back to be done elsewhere."""
    max_age_s: float = Field(float("inf"), gt=0)
    """A client's stream older than this moves to a new one, so that new replicas get traffic."""
