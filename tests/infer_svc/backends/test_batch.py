import numpy as np

from infer_svc.backends.batch import join


def test_parts_are_joined_in_order() -> None:
    joined = join([{"x": np.array([[1], [2]])}, {"x": np.array([[3]])}])
    assert joined["x"].tolist() == [[1], [2], [3]]
    assert joined["x"].flags.c_contiguous


def test_single_part_is_not_copied() -> None:
    part = {"x": np.array([[1]])}
    assert join([part])["x"] is part["x"]
