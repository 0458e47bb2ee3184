"""`make test-faults`: every test of a fault of FAULTS.md, the slow ones too; prints how many faults were survived."""

from __future__ import annotations

import sys

import pytest


class Count:
    """Which faults were tried, and by how many tests; a fault is survived where all its tests pass."""

    def __init__(self) -> None:
        self.tests: dict[int, list[bool]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or (report.when != "call" and report.passed):
            return
        for name, fault in report.user_properties:  # conftest.py notes it: the test may run in another process
            if name == "fault" and isinstance(fault, int):
                self.tests.setdefault(fault, []).append(report.passed)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for fault, passed in sorted(self.tests.items()):
            terminalreporter.write_line(f"fault {fault}: {sum(passed)} of {len(passed)} tests survived")
        survived = sum(all(passed) for passed in self.tests.values())
        terminalreporter.write_line(f"faults survived: {survived} of {len(self.tests)} tried")


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-m", "fault", "-n", "2", "--dist", "worksteal", *sys.argv[1:]], plugins=[Count()]))
