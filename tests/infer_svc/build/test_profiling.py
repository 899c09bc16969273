import subprocess
import sys
from pathlib import Path

import pytest

from infer_svc.backends.cuda import device
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.backends.trt_inspect import LayerTime
from infer_svc.build.builds import Builds
from infer_svc.build.profiling import ProfileLane, lines, sized
from infer_svc.config import read_config
from mesh.errors import InvalidInput, SettingsError

TIMES = [LayerTime("conv", 3.0, 50), LayerTime("add", 0.75, 50), LayerTime("relu", 0.25, 50)]


def test_layers_are_told_with_their_share_the_worst_first() -> None:
    assert lines(TIMES, 2, {"x": (8, 4)}, "H100") == [
        "4.000 ms in 3 layers on H100, x [8, 4]",
        "MS      SHARE  LAYER",
        "3.0000  75.0%  conv",
        "0.7500  18.8%  add",
        "… and 1 more",
    ]
    assert len(lines(TIMES, 3, {}, "H100")) == 5


def test_shape_is_the_largest_or_has_the_rows_that_are_wanted() -> None:
    assert sized((-1, 4), (8, 4), None) == (8, 4)
    assert sized((-1, -1), (8, 128), 2) == (2, 128)
    assert sized((3, 4), (3, 4), 2) == (3, 4)
    assert sized((), (), 2) == ()


@pytest.mark.parametrize("rows", [0, 9])
def test_rows_that_the_engine_has_no_room_for_are_refused(rows: int) -> None:
    with pytest.raises(InvalidInput, match=f"--rows {rows} came, the engine takes 1 to 8"):
        sized((-1, 4), (8, 4), rows)


def has_gpu() -> bool:
    try:
        device(0)
    except SettingsError:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "infer_svc.build", "profile", "digits-classify"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("trtmesh: engine profile runs the engine on a GPU: no ")


@pytest.mark.gpu
def test_layers_of_a_demo_model_are_measured(tmp_path: Path, models: Path) -> None:
    folder = models / "language"
    config = read_config(folder)
    plan = Builds(tmp_path / "engines").engine_for(folder / "1/model.onnx", config, 0).plan
    lane = ProfileLane(tensorrt_api(), device(0), plan, bucket=1, rows=4)
    assert set(lane.shapes.values()) == {(4, 32)}
    times = lane.measure(10)
    assert [time.ms for time in times] == sorted((time.ms for time in times), reverse=True)
    assert times[0].ms > 0
    assert {time.runs for time in times} == {10}
    with pytest.raises(InvalidInput, match="--bucket 9 came, the engine has 4 from 0"):
        ProfileLane(tensorrt_api(), device(0), plan, bucket=9)
