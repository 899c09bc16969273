"""The peers' virtual environments, made once by pip under build/peers/."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "build/peers"
SAME = ("onnxruntime", "opencv-python-headless", "uvloop", "transformers", "pydantic", "protobuf")
"""Every peer has the version of the mesh's own environment."""


@dataclass(frozen=True)
class Venv:
    """One environment."""

    name: str
    pins: tuple[str, ...]
    """Requirements with their versions."""
    same: tuple[str, ...] = ()
    """Those of `SAME` that it has."""
    bare: tuple[str, ...] = ()
    """Requirements that come without what they require."""

    @property
    def path(self) -> Path:
        """Its folder."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin/python"

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return self.path / f"lib/python3.{sys.version_info.minor}/site-packages"

    def requirements(self) -> list[str]:
        """Return all that pip resolves."""
        return [*self.pins, *(f"{name}=={version(name)}" for name in self.same)]

    def make(self) -> None:
        """Make it, unless one of just these requirements is there.

        Raises:
            subprocess.CalledProcessError: pip or venv failed; `stderr` says why.
        """
        wanted = "\n".join([*self.bare, *self.requirements()])
        stamp = self.path / "requirements.txt"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"making {self.path}", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(self.path))
        pip = (str(self.python), "-m", "pip", "install", "-q", "--disable-pip-version-check")
        if self.bare:
            _run(*pip, "--no-deps", *self.bare)
        _run(*pip, *self.requirements())
        self._after()
        stamp.write_text(wanted)

    def _after(self) -> None:
        """Finish what pip installed."""


class TritonVenv(Venv):
    """The one with Triton's server, whose wheel keeps a stub for each version of Python."""

    def _after(self) -> None:
        server = self.site_packages / "pytriton/tritonserver"
        stub = f"python_backend_stubs/3.{sys.version_info.minor}/triton_python_backend_stub"
        target = server / "backends/python/triton_python_backend_stub"
        target.write_bytes((server / stub).read_bytes())
        target.chmod(0o755)


# numpy 1.26: Triton's stub is built for numpy 1, as its wheel says. OpenCV 5 asks for numpy 2, runs
# with 1.26, and comes without it: all peers decode with the same library.
TRITON = TritonVenv(
    "triton", ("numpy==1.26.4",), ("onnxruntime", "transformers", "pydantic", "protobuf"),
    ("nvidia-pytriton==0.7.0", f"opencv-python-headless=={version('opencv-python-headless')}"),
)  # fmt: skip
FASTAPI = Venv(
    "fastapi",
    ("fastapi==0.165.0", "uvicorn==0.54.0", "httptools==0.9.0", "python-multipart==0.0.34"),
    ("onnxruntime", "opencv-python-headless", "uvloop", "transformers", "pydantic"),
)
LITSERVE = Venv(
    "litserve", ("litserve==0.2.19",), ("onnxruntime", "opencv-python-headless", "uvloop")
)
CLIENT = Venv("http-client", ("aiohttp==3.14.5",), ("uvloop",))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
