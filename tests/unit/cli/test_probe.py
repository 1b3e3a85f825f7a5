"""probe without an engine; with one, tests/engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.archives import BASE, docker_save, tar
from tests.support.commands import fails, on_a_terminal, succeeds
from tests.support.fixtures import Command
from tests.support.host import Host


@pytest.mark.root
class TestProbe:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> str:
        (tmp_path / "mongo.tar").write_bytes(docker_save(BASE))
        return str(tmp_path / "mongo.tar")

    def test_text(self, hostprep: Command, host: Host, archive: str) -> None:
        """It says who, where, why, and what to do, in plain text, and makes no root."""
        lines = succeeds(hostprep("probe", "--archive", archive)).splitlines()
        assert "runs as:    5:6" in lines
        assert "/data\t5:6\t0750\tyes\tuid=5 gid=6" in lines
        assert "docker volume create -d hostprep -o uid=5 -o gid=6 mongo" in lines
        assert "docker run -d -v mongo:/data mongo:7" in lines
        assert not host.root.exists()

    def test_json(self, hostprep: Command, archive: str) -> None:
        """As JSON it is one object with all of it."""
        found = hostprep("probe", "mongo:7", "--archive", archive, "--path", "/none", "--user", "0", "--json").json
        assert found["user"] == {"spec": "0", "uid": 0, "gid": 0, "groups": [], "why": found["user"]["why"]}
        assert [(each["path"], each["options"], each["drops"]) for each in found["directories"]] == [
            ("/data", {"uid": "5", "gid": "6"}, True),
            ("/none", {"uid": "0", "gid": "0"}, False),
        ]
        assert found["run"] == "docker run -d -u 0 -v mongo-data:/data -v mongo-none:/none mongo:7"

    def test_no_volumes(self, hostprep: Command, tmp_path: Path) -> None:
        """An image that names no directory gets no commands, and the advice to name one."""
        (tmp_path / "x.tar").write_bytes(docker_save(BASE, config={"config": {"User": "app"}}))
        out = succeeds(hostprep("probe", "--archive", str(tmp_path / "x.tar")))
        assert "--path" in out
        assert "docker volume create" not in out

    def test_control_characters(self, hostprep: Command, tmp_path: Path) -> None:
        """Nothing of an image reaches the terminal raw."""
        evil = "/a\x1b[31m\nb"
        layer = tar(("etc", None), ("etc/passwd", b"x\x1b[31m:x:5:6:::\n"), (evil[1:], None, 5, 6), ("l", f"-> {evil}"))
        config = {"config": {"User": "", "Volumes": {evil: {}, "/l": {}}}}
        (tmp_path / "x.tar").write_bytes(docker_save(layer, config=config, name="a\x1b"))
        for more in ([], ["--json"]):
            out = succeeds(hostprep("probe", "--archive", str(tmp_path / "x.tar"), *more))
            assert all(line.replace("\t", "").isprintable() for line in out.splitlines())

    def test_an_engine_elsewhere(self, hostprep: Command) -> None:
        """A DOCKER_HOST over a network is told, not passed by for an engine of this host."""
        fails(hostprep("probe", "x", DOCKER_HOST="tcp://127.0.0.1:1"), "DOCKER_HOST", "network")


def test_on_a_terminal() -> None:
    """On a terminal directories are a table, and what is to be pasted is in one line, however long."""
    text = on_a_terminal(
        "from hostprep.cli import probe; from hostprep.engine.image import *; from hostprep.options import Mode\n"
        "user, entry = User('', 0, 0, (), 'root'), ImageEntry('directory', Mode(0o700), 5, 6)\n"
        "one = Directory('/' + 'd' * 100, '/d', (), entry, 5, 6, True, ('root', '[red]why'))\n"
        "probe.show(ProbeResult('mongo', Config('sha256:1', '', (), True), user, (one,)), None)"
    )
    assert "DIRECTORY" in text
    assert "\t" not in text
    assert "[red]why" in text
    assert "docker run -d -v mongo:/" + "d" * 100 + " mongo" in text
