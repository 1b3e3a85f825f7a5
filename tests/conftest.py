"""What a machine cannot run is skipped with the reason, never silently; with CI=true that is an error."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs root where there is none."""
    if os.geteuid() != 0 and item.get_closest_marker("root"):
        pytest.skip("needs root: it changes owners, modes, labels or mounts")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything has to run, whatever was skipped, for whatever reason, has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"CI=true, so nothing may be skipped: {report.longreprtext}"
    return report
