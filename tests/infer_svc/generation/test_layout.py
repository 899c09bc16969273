"""Where tensors of steps are: rows of slots, and blocks for what is copied."""

import pytest

from infer_svc.generation.layout import ALIGNED, START, Layout, sized
from mesh.errors import EngineError
from mesh.tensor import TensorSpec

STEP = [
    TensorSpec("ids", "INT64", (-1, -1)),
    TensorSpec("k_0", "FP16", (-1, 2, 16, 8)),
    TensorSpec("v_0", "FP16", (-1, 2, 16, 8)),
    TensorSpec("xk_0", "FP16", (-1, 2, 32, 8)),
]
ROW = 2 * 16 * 8 * 2


def places(layout: Layout) -> dict[str, int]:
    """Return where blocks are that lie one after the other."""
    at, found = ALIGNED, {}
    for name, size in {**layout.step_blocks(50, 2), **layout.encoder_blocks(32)}.items():
        found[name] = at
        at += -(-size // ALIGNED) * ALIGNED
    return found


def test_caches_are_written_where_they_are() -> None:
    layout = Layout(STEP, 4, in_place=True)
    assert (layout.length, layout.source_length) == (16, 32)
    assert layout.row_bytes == {"k_0": ROW, "v_0": ROW, "xk_0": 2 * ROW}
    at = places(layout)
    step, piece, encoder = layout.step(at), layout.piece(at, 3), layout.encoder(at)
    assert step["k_0"] == step["k_0_out"] == at["k_0"]
    assert piece["v_0"] == piece["v_0_out"] == at["v_0"] + 3 * ROW
    assert encoder["xk_0"] == encoder["xk_0_out"] == at["made xk_0"]
    assert layout.copied(("k_", "v_"), 2) == {}


def test_caches_that_are_copied_have_another_block() -> None:
    layout = Layout(STEP, 4, in_place=False)
    at = places(layout)
    step, piece, encoder = layout.step(at), layout.piece(at, 3), layout.encoder(at)
    assert step["k_0"] != step["k_0_out"] == at["k_0_out"]
    assert piece["k_0"] == at["k_0"] + 3 * ROW
    assert piece["k_0_out"] == at["k_0_out"]
    assert encoder["xk_0_out"] == at["made xk_0_out"] != encoder["xk_0"]
    assert layout.step_blocks(50, 2)["k_0_out"] == 4 * ROW
    assert layout.copied(("k_", "v_"), 2) == {"k_0": 2 * ROW, "v_0": 2 * ROW}


def test_piece_says_nothing_where_rows_say_it() -> None:
    layout = Layout(STEP, 4, in_place=True)
    at = places(layout)
    piece = layout.piece(at, 0)
    assert piece["best"] == at["unread best"]
    assert piece["start"] - piece["ids"] == START * 8


def test_rows_that_are_not_aligned_are_refused() -> None:
    with pytest.raises(EngineError, match=r"multiples of 256.*even length"):
        Layout([TensorSpec("k_0", "FP16", (-1, 1, 3, 8))], 2, in_place=True)


def test_open_sizes_are_rows_and_then_tokens() -> None:
    assert sized(STEP[0], 4, 7) == (4, 7)
    assert sized(STEP[1], 4, 7) == (4, 2, 16, 8)
