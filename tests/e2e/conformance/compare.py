"""All cases at both servers, and the table of what they answered."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.conformance.calls import Outcome
from tests.e2e.conformance.cases import CASES, NOT_COMPARED
from tests.e2e.conformance.servers import Server

TABLE = Path(__file__).parent.parent.parent.parent / "gateway/CONFORMANCE.md"
WIDTH = 150
BUG = "BUG:"
COMMAND = "python -m tests.e2e.conformance"


@dataclass(frozen=True)
class Row:
    """What both answered in a case."""

    name: str
    theirs: Outcome
    ours: Outcome

    @property
    def same(self) -> bool:
        """Whether both answered the same."""
        return bool(self.theirs == self.ours)


def run(theirs: Server, ours: Server) -> list[Row]:
    """Run all cases.

    Raises:
        ConnectionError: a server went away.
    """
    rows: list[Row] = []
    for name, case in CASES.items():
        answers = [json.loads(json.dumps(case(server))) for server in (theirs, ours)]
        rows.append(Row(name, *answers))
    for server in (theirs, ours):
        if not server.is_live():
            raise ConnectionError(f"{server} does not answer any more")
    return rows


def unexplained(rows: Iterable[Row], explained: Mapping[str, str]) -> list[str]:
    """Return what is wrong with explanations: each difference has one, and nothing else."""
    rows = list(rows)
    bare = [row for row in rows if not row.same and row.name not in explained]
    found = [f"{row.name}: {cells(row)}" for row in bare]
    found += [f"{row.name} is the same" for row in rows if row.same and row.name in explained]
    names = {row.name for row in rows}
    return found + [f"{name} is no case" for name in explained if name not in names]


def table(rows: Iterable[Row], explained: Mapping[str, str]) -> str:
    """Return the page."""
    rows = list(rows)
    same = [row.name for row in rows if row.same]
    different = [row for row in rows if not row.same]
    bugs = [row for row in different if explained.get(row.name, "").startswith(BUG)]
    lines = [
        "# Conformance",
        "",
        "The same requests to Triton's server (2.51, Python backend) and to a mesh, over gRPC and "
        f"HTTP, with twins of the same models: of {len(rows)} cases {len(same)} are answered "
        f"alike, {len(different)} are not. Only that part of an answer is shown in which they "
        "differ; texts of errors are not compared. `tests/e2e/test_conformance.py` compares this "
        f"page with what the servers answer; `{COMMAND}` writes it.",
        "",
    ]  # fmt: skip
    if bugs:
        lines += ["## To be mended", "", *_rows(bugs, explained)]
    others = [row for row in different if row not in bugs]
    lines += ["## Different", "", *_rows(others, explained)]
    lines += ["## Not compared", ""]
    lines += [f"- {name}: {reason}" for name, reason in NOT_COMPARED.items()]
    lines += ["", "## Alike", ""]
    lines += [f"- {group}: {', '.join(names)}" for group, names in _groups(same).items()]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> tuple[str, str]:
    """Return what is shown of both answers: where they differ."""
    theirs, ours = _differing(row.theirs, row.ours)
    return _cell(theirs), _cell(ours)


def _rows(rows: Iterable[Row], explained: Mapping[str, str]) -> list[str]:
    lines = ["| case | Triton | trtmesh | why |", "|---|---|---|---|"]
    for row in rows:
        reason = explained.get(row.name, "").removeprefix(BUG).strip()
        theirs, ours = cells(row)
        lines.append(f"| {row.name} | {theirs} | {ours} | {reason} |")
    return [*lines, ""]


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        group, colon, rest = name.partition(": ")
        found.setdefault(group if colon else "others", []).append(rest if colon else name)
    return found


def _differing(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Return two values without what is the same in both."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = [name for name in theirs | ours if theirs.get(name, ...) != ours.get(name, ...)]
        if theirs.keys() & ours.keys():
            pairs = {
                name: _differing(theirs[name], ours[name])
                for name in names
                if name in theirs and name in ours
            }
            return tuple(
                {
                    name: pairs[name][side] if name in pairs else one[name]
                    for name in names
                    if name in one
                }
                for side, one in enumerate((theirs, ours))
            )  # type: ignore[return-value]
    if isinstance(theirs, list) and isinstance(ours, list) and theirs and ours:
        if len(theirs) == len(ours):
            pairs_ = [_differing(a, b) for a, b in zip(theirs, ours, strict=True) if a != b]
            return [pair[0] for pair in pairs_], [pair[1] for pair in pairs_]
        if all(isinstance(one, str | list) for one in (*theirs, *ours)):
            return (
                [one for one in theirs if one not in ours],
                [one for one in ours if one not in theirs],
            )
    return theirs, ours


def _cell(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True).replace("|", "\\|")
    return f"`{text if len(text) <= WIDTH else text[:WIDTH] + '…'}`"
