"""What cannot be run is skipped with its reason, and is an error where nothing may be skipped."""

from __future__ import annotations

import os
from typing import Any

import pytest
from conftest import pytest_runtest_setup


class Item:
    """A test with the marks given."""

    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def get_closest_marker(self, name: str) -> Any:
        return name if name in self.marks else None


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Not root, on somebody's own machine."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("CI", raising=False)
    return monkeypatch


def setup(*marks: str) -> None:
    pytest_runtest_setup(Item(*marks))  # type: ignore[arg-type]  # as much of an item as it looks at


@pytest.mark.usefixtures("nobody")
def test_without_root() -> None:
    """A test that needs root is skipped without it, and says why; another is run."""
    with pytest.raises(pytest.skip.Exception, match="needs root"):
        setup("root")
    setup()


def test_without_root_where_all_must_run(nobody: pytest.MonkeyPatch) -> None:
    """With CI=true that is a failure."""
    nobody.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI=true"):
        setup("root")


def test_with_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root everything is run."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    setup("root")
