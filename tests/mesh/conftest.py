"""What several tests of the mesh's runtime need."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def bind() -> Iterator[str]:
    """A unix socket; pytest's own folders have longer paths than a socket may have."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        yield f"unix:{folder}/x.sock"
