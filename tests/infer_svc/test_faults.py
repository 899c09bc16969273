"""Faults on purpose: what the setting says is what happens."""

import time

import pytest

from infer_svc.backends.errors import DeviceLost, OutOfMemory
from infer_svc.faults import NO_FAULTS, SEAMS, Fault, Faults, parse_faults
from mesh.errors import EngineError, SettingsError

KINDS = {"memory": OutOfMemory, "device": DeviceLost, "illegal": DeviceLost}


def test_without_faults_no_seam_fails() -> None:
    for seam in SEAMS:
        NO_FAULTS.at(seam)
    assert not NO_FAULTS.injected


@pytest.mark.parametrize("seam", [seam for seam in SEAMS if seam not in {"stall", "spin"}])
def test_seam_fails_as_it_would_by_itself(seam: str) -> None:
    faults = parse_faults(f"{seam}=1")
    with pytest.raises(EngineError, match=seam) as caught:
        faults.at(seam)
    assert type(caught.value) is KINDS.get(seam, EngineError)
    for other in set(SEAMS) - {seam}:
        faults.at(other)


def test_stall_takes_its_seconds_and_no_more() -> None:
    faults = parse_faults("stall=1:0.05")
    started = time.monotonic()
    faults.at("stall")
    assert 0.05 <= time.monotonic() - started < 5


def test_rate_is_kept() -> None:
    faults = Faults({"enqueue": Fault(0.1)}, seed=1)
    for _ in range(10_000):
        try:
            faults.at("enqueue")
        except EngineError:
            continue
    assert 850 <= faults.injected["enqueue"] <= 1150


def test_several_seams_may_be_named() -> None:
    faults = parse_faults(" h2d=0, sync=1 ,")
    faults.at("h2d")
    with pytest.raises(EngineError):
        faults.at("sync")


@pytest.mark.parametrize("seconds", ["-5", "nan", "1e300"])
def test_stall_that_nobody_can_wait_for_is_refused(seconds: str) -> None:
    with pytest.raises(SettingsError, match=r"stall=RATE:SECONDS, at most 86400"):
        parse_faults(f"stall=0.1:{seconds}")


@pytest.mark.parametrize(
    "text", ["nowhere=1", "h2d", "h2d=", "h2d=2", "h2d=-0.1", "h2d=nan", "h2d=1:5", "stall=1:x"]
)
def test_fault_that_makes_no_sense_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(SettingsError, match="came, wanted SEAM=RATE") as caught:
        parse_faults(text)
    assert repr(text) in str(caught.value)
