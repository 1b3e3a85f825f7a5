"""A test may assume that this machine is busy, and that other tests run beside it in processes of their own.

What a machine cannot run is skipped with the reason, never silently; with CI=true that is an error.
"""

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


# Side by side (`pytest -n auto`), as tests/support/workers.py says; the enforcing guest has no pytest-xdist.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    from tests.support import workers

    return workers.number()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.support import workers

    return workers.Scheduler(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        from tests.support.namespaces import own_mounts

        own_mounts()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests.support import workers

        items[:] = workers.in_order(items)
