"""Rules that keep the tree readable, each of them shown to trip."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = ("gateway", "preprocess_svc", "infer_svc", "postprocess_svc")
PACKAGES = ("mesh", *SERVICES)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
BANNED = {"utils", "common", "helpers", "shared"}

NO_MIRROR = {
    "mesh/errors.py": "classes without code; test_status.py walks them all",
    "infer_svc/backends/errors.py": "classes without code; the tests of what raises them",
    "infer_svc/backends/machine.py": "fields only",
    "gateway/control.py": "wiring, which tests/e2e starts",
    "gateway/worker.py": "wiring, which tests/e2e starts",
    "preprocess_svc/replica.py": "wiring, which tests/e2e starts",
    "postprocess_svc/replica.py": "wiring, which tests/e2e starts",
    "infer_svc/batch_trace.py": "tests/infer_svc/test_batcher.py looks at its spans",
    "mesh/grpc_types.py": "names for the type checker",
    "mesh/cli/options.py": "options that the tests of every command use",
    "mesh/cli/demo.py": "tests/e2e starts it",
    "preprocess_svc/settings.py": "fields only; tests/mesh/test_settings.py loads such",
    "postprocess_svc/settings.py": "fields only; tests/mesh/test_settings.py loads such",
}
"""Modules without a test of their own, and why; so are `__init__` (tables) and `__main__` (wiring,
which tests/e2e starts)."""


def sources(root: Path) -> Iterator[Path]:
    """Yield the source files of the packages, relative to the root."""
    for package in PACKAGES:
        yield from sorted(path.relative_to(root) for path in (root / package).rglob("*.py"))


def imported(source: str) -> set[str]:
    """Return the top-level packages that a source file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def wrong_imports(root: Path) -> list[str]:
    """Return imports of a service by the runtime or by another service."""
    found = []
    for path in sources(root):
        strangers = set(SERVICES) - {path.parts[0]}
        for name in sorted(imported((root / path).read_text()) & (strangers | {"tests"})):
            found.append(f"{path} imports {name}")
    return found


def missing_mirrors(root: Path) -> list[str]:
    """Return source files without a test file at the same path under tests/."""
    return [
        str(path)
        for path in sources(root)
        if path.stem not in ("__init__", "__main__")
        and str(path) not in NO_MIRROR
        and not (root / "tests" / path.parent / f"test_{path.name}").exists()
    ]


def long_files(root: Path) -> list[str]:
    """Return files with more lines than a file may have."""
    lines = {path: len((root / path).read_text().splitlines()) for path in sources(root)}
    return [f"{path}: {count} lines" for path, count in lines.items() if count > MAX_FILE_LINES]


def long_functions(root: Path) -> list[str]:
    """Return functions with more lines than a function may have."""
    found = []
    for path in sources(root):
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > MAX_FUNCTION_LINES:
                    found.append(f"{path}: {node.name} has {count} lines")
    return found


def banned_names(root: Path) -> list[str]:
    """Return modules and packages whose name says nothing."""
    return [str(p) for p in sources(root) if BANNED & {part.strip("_") for part in names_of(p)}]


def names_of(path: Path) -> tuple[str, ...]:
    return (*path.parent.parts, path.stem)


def generated(folder: Path) -> dict[str, bytes]:
    """Return the generated files of a folder by their names."""
    return {path.name: path.read_bytes() for path in (folder / "protos/mesh/v1").glob("*_pb2*")}


def drift(root: Path, scratch: Path) -> list[str]:
    """Return generated files that `make protos` would change."""
    protos = sorted(str(path.relative_to(root)) for path in root.glob("protos/mesh/v1/*.proto"))
    outputs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *protos]
    subprocess.run(command, check=True, cwd=root, capture_output=True)
    new, old = generated(scratch), generated(root)
    return sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))


def test_services_never_import_each_other_and_the_runtime_imports_none() -> None:
    assert wrong_imports(ROOT) == []


def test_every_module_has_a_test_file_at_its_path() -> None:
    assert missing_mirrors(ROOT) == []


def test_exceptions_from_the_mirror_are_needed() -> None:
    for name in NO_MIRROR:
        path = Path(name)
        assert (ROOT / path).exists(), f"{name} is gone"
        assert not (ROOT / "tests" / path.parent / f"test_{path.name}").exists(), f"{name} has one"


def test_no_file_is_too_long() -> None:
    assert long_files(ROOT) == []


def test_no_function_is_too_long() -> None:
    assert long_functions(ROOT) == []


def test_no_module_is_a_drawer() -> None:
    assert banned_names(ROOT) == []


def test_generated_code_is_that_of_the_protos(tmp_path: Path) -> None:
    assert drift(ROOT, tmp_path) == [], "run `make protos` and commit what it writes"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one service and one module of the runtime, that breaks no rule."""
    write(tmp_path, "mesh/tensor.py", "import protos.mesh.v1\nfrom mesh import errors\n")
    write(tmp_path, "gateway/runner.py", "import mesh\n\ndef run() -> None:\n    import gateway\n")
    write(tmp_path, "tests/mesh/test_tensor.py")
    write(tmp_path, "tests/gateway/test_runner.py")
    return tmp_path


def write(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def function(lines: int) -> str:
    return "class A:\n    async def long(self) -> None:\n" + "        pass\n" * (lines - 1)


def test_tree_that_breaks_no_rule_trips_no_guard(tree: Path) -> None:
    for guard in (wrong_imports, missing_mirrors, long_files, long_functions, banned_names):
        assert guard(tree) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        pytest.param("mesh/a.py", "import gateway.runner", "gateway", id="runtime_imports_service"),
        pytest.param("gateway/a.py", "from infer_svc import x", "infer_svc", id="other_service"),
        pytest.param("infer_svc/a.py", "import preprocess_svc as p", "preprocess_svc", id="alias"),
        pytest.param("infer_svc/ops/a.py", "import gateway", "gateway", id="deep"),
        pytest.param(
            "gateway/a.py", "def f():\n    import infer_svc.x", "infer_svc", id="in_a_function"
        ),
        pytest.param(
            "gateway/a.py", "if TYPE_CHECKING:\n    import infer_svc", "infer_svc", id="for_types"
        ),
        pytest.param("mesh/a.py", "from tests.conftest import echo", "tests", id="tests"),
    ],
)
def test_import_of_another_service_trips(name: str, text: str, found: str, tree: Path) -> None:
    write(tree, name, text)
    assert wrong_imports(tree) == [f"{name} imports {found}"]


@pytest.mark.parametrize(
    "name", ["mesh/new.py", "gateway/deep/new.py", "infer_svc/new.py"], ids=str
)
def test_module_without_a_test_file_trips(name: str, tree: Path) -> None:
    write(tree, name)
    assert missing_mirrors(tree) == [name]
    write(tree, "tests/mesh/cli/test_new.py")  # another path is no mirror
    assert missing_mirrors(tree) == [name]


@pytest.mark.parametrize("name", ["mesh/errors.py", "gateway/__main__.py", "gateway/__init__.py"])
def test_exception_needs_no_test_file(name: str, tree: Path) -> None:
    write(tree, name)
    assert missing_mirrors(tree) == []


def test_file_of_401_lines_trips_and_one_of_400_does_not(tree: Path) -> None:
    write(tree, "mesh/tensor.py", "x = 1\n" * 400)
    assert long_files(tree) == []
    write(tree, "mesh/tensor.py", "x = 1\n" * 401)
    assert long_files(tree) == ["mesh/tensor.py: 401 lines"]


def test_function_of_61_lines_trips_and_one_of_60_does_not(tree: Path) -> None:
    write(tree, "mesh/tensor.py", function(60))
    assert long_functions(tree) == []
    write(tree, "mesh/tensor.py", function(61))
    assert long_functions(tree) == ["mesh/tensor.py: long has 61 lines"]


@pytest.mark.parametrize(
    "name", ["mesh/utils.py", "gateway/common/x.py", "mesh/cli/_helpers.py", "infer_svc/shared.py"]
)
def test_name_of_a_drawer_trips(name: str, tree: Path) -> None:
    write(tree, name)
    assert banned_names(tree) == [name]


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of the protos with their generated code."""
    shutil.copytree(ROOT / "protos", tmp_path / "tree/protos")
    (tmp_path / "scratch").mkdir()
    return tmp_path / "tree"


def test_field_that_was_not_generated_trips(protos: Path) -> None:
    path = protos / "protos/mesh/v1/stage.proto"
    path.write_text(
        path.read_text().replace("bool drain = 6;", "bool drain = 6;\n  bool new = 17;")
    )
    assert drift(protos, protos.parent / "scratch") == ["stage_pb2.py", "stage_pb2.pyi"]


def test_generated_code_that_somebody_edited_or_left_behind_trips(protos: Path) -> None:
    folder = protos / "protos/mesh/v1"
    (folder / "mesh_pb2_grpc.py").write_text("# by hand\n")
    (folder / "old_pb2.py").touch()
    assert drift(protos, protos.parent / "scratch") == ["mesh_pb2_grpc.py", "old_pb2.py"]
