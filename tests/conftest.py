"""What a machine cannot run is skipped with the reason, never silently; with CI=true that is an error."""

from __future__ import annotations

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, a test that needs root where there is none; tests/engine looks after its own marker."""
    if os.geteuid() != 0 and item.get_closest_marker("root"):
        reason = "needs root: it changes owners, modes, labels or mounts"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI=true, so nothing may be skipped: {reason}", pytrace=False)
        pytest.skip(reason)
