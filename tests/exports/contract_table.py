"""A plugin of pytest that prints the contract as a table: target × parses × schedule equal × selfcheck."""

from __future__ import annotations

import re
from typing import Any

COLUMNS = {"test_parses": "parses", "test_schedule": "schedule equal", "test_selfcheck": "selfcheck"}
SAID = {"passed": "yes", "failed": "NO", "error": "NO", "skipped": "no package"}  # the worst of a cell's tests last


def pytest_terminal_summary(terminalreporter: Any) -> None:
    cells: dict[str, dict[str, str]] = {}
    for outcome, said in SAID.items():
        for report in terminalreporter.stats.get(outcome, []):
            found = re.search(r"test_contract\.py::(\w+)\[(\w+)", getattr(report, "nodeid", ""))
            if found and found[1] in COLUMNS:
                cells.setdefault(found[2], {})[found[1]] = said
    if cells:
        line = "{:14}" + "{:16}" * len(COLUMNS)
        terminalreporter.section("exports, by the real packages")
        terminalreporter.line(line.format("target", *COLUMNS.values()))
        for target, row in sorted(cells.items()):
            terminalreporter.line(line.format(target, *(row.get(c, "-") for c in COLUMNS)))
