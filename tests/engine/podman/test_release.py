"""The release's tree holds what README.md's table says of it."""

from __future__ import annotations

import re
import tomllib

import pytest

from testbed import releases
from testbed.engine import TOP, Engine

from ..client import Docker, Podman

pytestmark = pytest.mark.engine


def test_versions(docker: Docker, podman: Podman, engine: Engine) -> None:
    """dockerd, Compose and Podman are of the versions that the column of the table is for."""
    found = (
        docker("version", "--format", "{{.Server.Version}}"),
        engine.client("docker-compose", "version", "--short").stdout.strip(),
        podman("version", "--format", "{{.Client.Version}}"),
    )

    assert releases.RELEASE
    assert tuple(".".join(version.split(".")[:2]) for version in found) == releases.RELEASES[releases.RELEASE]


def test_table() -> None:
    """README's table has a column for each engine of every release, in order, and names tests that are there."""
    text = (TOP / "README.md").read_text()
    table = [row.strip("| ").split(" | ") for row in text.splitlines() if row.count("|") == 9]
    versions = list(releases.RELEASES.values())
    engines = [f"Docker {each.docker}" for each in versions] + [f"Podman {each.podman}" for each in versions]

    assert table[0][:6] == engines
    assert table[2][1:7] == [*releases.RELEASES] * 2
    assert table[3][1:7] == [each.compose for each in versions] * 2
    named = {word.strip("`,") for row in table[2:] for word in row[7].split()}
    assert [name for name in named if not (TOP / "tests/engine" / name).is_file()] == []


def test_page() -> None:
    """docs/podman.md shows the fragment that is shipped, and with which the tests here run."""
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", (TOP / "docs/podman.md").read_text(), re.MULTILINE | re.DOTALL)

    assert tomllib.loads(shown) == tomllib.loads((TOP / "docs/podman.conf").read_text())
