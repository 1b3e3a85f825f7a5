"""What the tests of doctor share: the command, as root, with no engine to ask."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fixtures import Command

MONGO = ("-o", "uid=184", "-o", "gid=998")
ALONE = ("--docker-host", "unix:///none")


@pytest.fixture
def doctor(hostprep: Command) -> Doctor:
    return Doctor(hostprep)


class Doctor:
    """The command, with nobody to ask."""

    def __init__(self, hostprep: Command) -> None:
        self.hostprep = hostprep

    def found(self, *arguments: str, **changed: str) -> dict[str, Any]:
        done = self.hostprep(*ALONE, "doctor", *arguments, "--json", **changed)
        found = json.loads(done.out or "null")
        assert isinstance(found, dict), done.err
        assert done.code == (0 if found["usable"] else 1)
        return found

    def all(self, check: str, *arguments: str, **changed: str) -> list[dict[str, Any]]:
        return [each for each in self.found(*arguments, **changed)["findings"] if each["check"] == check]
