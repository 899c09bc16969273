"""The mesh answers as Triton's server does, except where it is said and why."""

from collections.abc import Iterator

import pytest

from tests.e2e.conformance.compare import COMMAND, TABLE, Row, run, table, unexplained
from tests.e2e.conformance.explained import EXPLAINED, REASONS
from tests.e2e.conformance.servers import both

ROWS = [Row("equal", 1, 1), Row("different", {"error": "A", "id": "x"}, {"error": "B", "id": "x"})]
WHY = {"different": "Because."}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Row]]:
    with both(tmp_path_factory.mktemp("conformance")) as servers:
        yield run(*servers)


@pytest.mark.slow
def test_each_difference_is_explained_and_nothing_else_is(rows: list[Row]) -> None:
    assert unexplained(rows, EXPLAINED) == []


@pytest.mark.slow
def test_committed_table_is_what_the_servers_answer(rows: list[Row]) -> None:
    assert TABLE.read_text() == table(rows, EXPLAINED), f"run `{COMMAND}` and commit the table"


def test_no_case_has_two_reasons() -> None:
    assert sum(map(len, REASONS.values())) == len(EXPLAINED)


def test_difference_without_a_reason_trips() -> None:
    assert unexplained(ROWS, WHY) == []
    (found,) = unexplained(ROWS, {})
    assert found.startswith("different: ")


def test_reason_of_a_case_that_is_equal_or_unknown_trips() -> None:
    assert unexplained(ROWS, WHY | {"equal": "?"}) == ["equal is the same"]
    assert unexplained(ROWS, WHY | {"gone": "?"}) == ["gone is no case"]


def test_table_shows_only_what_differs() -> None:
    page = table(ROWS, WHY)
    assert '| different | `{"error": "A"}` | `{"error": "B"}` | Because. |' in page
    assert "of 2 cases 1 are answered alike" in page and "To be mended" not in page
    assert "## To be mended" in table(ROWS, {"different": "BUG: late"})
