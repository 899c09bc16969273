"""Which shapes engines are built for, and what a batch is padded to."""

import pytest

from infer_svc.backends.shapes import cropping, fit, profiles_of, rungs
from mesh.errors import InvalidInput
from mesh.tensor import TensorSpec

LENGTHS = (16, 32, 64, 128)
DECLARED = {"ids": (-1, -1), "scale": (4,)}
LIMITS = [{"ids": (8, length), "scale": (4,)} for length in (16, 32)]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12]), (32, [1, 2, 4, 8, 16, 32])],
)
def test_rungs_are_powers_of_two_and_the_largest(rows: int, wanted: list[int]) -> None:
    assert rungs(rows) == wanted


def test_profile_of_a_model_whose_sizes_are_fixed() -> None:
    specs = [TensorSpec("x", "UINT8", (-1, 32, 32, 3))]
    assert profiles_of(specs, 8, LENGTHS) == [
        {"x": ((1, 32, 32, 3), (8, 32, 32, 3), (8, 32, 32, 3))}
    ]


def test_profile_for_each_length() -> None:
    specs = [TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("c", "FP32", (4,))]
    assert profiles_of(specs, 4, (16, 32)) == [
        {"ids": ((1, 16), (4, 16), (4, 16))}, {"ids": ((1, 32), (4, 32), (4, 32))},
    ]  # fmt: skip


def test_profile_of_a_model_without_batches() -> None:
    assert profiles_of([TensorSpec("x", "FP32", (3, -1))], 0, (16,)) == [
        {"x": ((3, 16), (3, 16), (3, 16))}
    ]
    assert profiles_of([TensorSpec("x", "FP32", (3, 2))], 0, (16,)) == [{}]
    assert profiles_of([TensorSpec("x", "FP32", (-1, 2))], 0, (16,)) == [
        {"x": ((1, 2), (16, 2), (16, 2))}
    ]


@pytest.mark.parametrize(
    ("shape", "profile", "run"),
    [
        ((1, 16), 0, (1, 16)),
        ((1, 17), 1, (1, 32)),
        ((3, 5), 0, (4, 16)),
        ((8, 32), 1, (8, 32)),
    ],
)
def test_batch_is_padded_to_the_next_rung_and_bucket(
    shape: tuple[int, ...], profile: int, run: tuple[int, ...]
) -> None:
    assert fit({"ids": shape, "scale": (4,)}, DECLARED, LIMITS) == (
        profile,
        {"ids": run, "scale": (4,)},
    )


@pytest.mark.parametrize("shape", [(9, 16), (1, 33)])
def test_batch_that_no_profile_has_room_for_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"wanted at most .*\(8, 32\).*; the engine was built"):
        fit({"ids": shape, "scale": (4,)}, DECLARED, LIMITS)


def test_padded_sizes_are_those_of_the_axis_they_stand_on() -> None:
    found = cropping({"ids": (3, 5)}, {"ids": (4, 16)})
    assert found == {(0, 4): 3, (1, 16): 5}
