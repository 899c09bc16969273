"""`python -m tests.e2e.conformance`: runs all cases and writes the table."""

import sys
import tempfile
from pathlib import Path

from tests.e2e.conformance.compare import TABLE, run, table, unexplained
from tests.e2e.conformance.explained import EXPLAINED
from tests.e2e.conformance.servers import both


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, both(Path(folder)) as pair:
        rows = run(*pair)
    TABLE.write_text(table(rows, EXPLAINED))
    wrong = unexplained(rows, EXPLAINED)
    print(f"{len(rows)} cases, {sum(row.same for row in rows)} alike; {TABLE.name} is written")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
