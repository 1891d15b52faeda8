"""What the whole suite agrees on: which skips are allowed.

A test that needs a GPU or a Debian-only tool may skip, and is listed at the end. Any other skip is a
failure: a test that quietly does not run proves nothing.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

MAY_SKIP = ("gpu", "debian")
_skipped: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that is not allowed into a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if any(item.get_closest_marker(name) for name in MAY_SKIP):
            _skipped.append(f"{item.nodeid}: {reason}")
        else:
            report.outcome = "failed"
            report.longrepr = f"skipped, and only tests marked {' or '.join(MAY_SKIP)} may be: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run."""
    if _skipped:
        terminalreporter.section("skipped for want of a GPU or a Debian tool")
        for line in _skipped:
            terminalreporter.line(line)
