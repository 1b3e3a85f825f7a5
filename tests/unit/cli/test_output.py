"""What a person reads: plain text in a pipe, tables and bars on a terminal, nothing that reaches the terminal raw."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from dataclasses import asdict
from typing import Any

import pytest

from hostprep.cli import output
from hostprep.tree.directory import Prepared
from hostprep.tree.plan import Change
from hostprep.tree.process import Progress
from hostprep.tree.walk import Outcome
from tests.support.host import PYTHON, REPOSITORY


def status(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "uid": 184,
        "gid": 998,
        "mode": "0750",
        "label": None,
        "options": {"uid": "184"},
        "ready": True,
        "drift": [],
        "warnings": [],
    }
    return {**found, **changed}


def volume(**changed: Any) -> dict[str, Any]:
    return {"name": "mongo", "mountpoint": "/srv/db", "created_at": "2026-11-24T04:00:00Z", "status": status(**changed)}


def on_a_terminal(code: str) -> str:
    """Run *code* with stdout and stderr on a terminal, and answer what it shows there."""
    ours, theirs = pty.openpty()
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "120"}
    command = [PYTHON, "-c", f"from hostprep.cli import output\n{code}"]
    subprocess.run(command, cwd=REPOSITORY, env=environ, stdout=theirs, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end
        while got := os.read(ours, 65536):
            shown += got
    os.close(ours)
    return shown.decode()


class TestTable:
    def test_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe cells are parted by tabs, a row a line, without colour."""
        output.table(["NAME", "MODE"], [["mongo", "0750"], ["redis", "-"]])
        assert capsys.readouterr().out == "NAME\tMODE\nmongo\t0750\nredis\t-\n"

    def test_control_characters_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A cell can neither end its line nor its column."""
        output.table(["NAME"], [["a\nb\tc\x1b[31m"]])
        assert capsys.readouterr().out == "NAME\na\\nb\\tc\\x1b[31m\n"

    def test_on_a_terminal(self) -> None:
        """On a terminal it is a table; what looks like markup or a sequence is shown as it is written."""
        text = on_a_terminal(
            "output.table(['NAME', 'PATH'], [['mongo', '/srv/[red]x\\x1b[31m'], ['redis', '/srv/[/]']])"
        )
        assert "/srv/[red]x\\x1b[31m" in text
        assert "/srv/[/]" in text
        assert "\t" not in text


class TestVolume:
    @pytest.mark.parametrize(
        ("changed", "word"),
        [
            ({}, "ready"),
            ({"drift": ["mode is 0755, declared 0750"], "ready": False}, "drift"),
            ({"ready": False}, "unusable"),
            ({"ready": False, "drift": ["x"], "progress": {"done": 5}}, "preparing"),
        ],
    )
    def test_its_state(self, changed: dict[str, Any], word: str) -> None:
        """One word says how a volume is."""
        assert output.state(status(**changed)) == word

    def test_a_row(self) -> None:
        """A row has name, owner, mode, label, state and mountpoint."""
        assert output.volume_row(volume()) == ["mongo", "184:998", "0750", "-", "ready", "/srv/db"]

    def test_a_row_of_a_damaged_one(self) -> None:
        """Where nothing is known there are dashes."""
        nothing = {**volume(uid=None, gid=None, mode=None, ready=False), "mountpoint": None, "created_at": None}
        assert output.volume_row(nothing) == ["mongo", "-", "-", "-", "unusable", "-"]

    def test_all_of_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        """All that is known is shown, a line each, with drift and warnings in words and nothing raw."""
        output.one_volume(
            volume(drift=["mode is 0755"], warnings=["a\nb"], progress=asdict(Progress.now(1234, 5000, 10.0)))
        )
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == (
            "name state mountpoint created owner mode label options drift warning progress".split()
        )
        assert lines[9].endswith("a\\nb")
        assert lines[10].endswith("[####................] 1,234 of about 5,000 entries, 123/s, about 30 s left")


class TestPrepared:
    DONE = Prepared("/srv/db", True, [Change("owner", "0:0", "184:998")], Outcome(10, 3, 1, ["a: is a mount point"]))

    def test_in_words(self) -> None:
        """What was done is a sentence each."""
        assert output.plan_lines(self.DONE, dry_run=False) == [
            "/srv/db: made the directory",
            "/srv/db: changed owner 0:0 -> 184:998",
            "/srv/db: changed 3 of 10 entries below it",
            "/srv/db: left alone a: is a mount point",
        ]

    def test_a_plan_in_words(self) -> None:
        """What would be done says so."""
        lines = output.plan_lines(self.DONE, dry_run=True)
        assert all("would " in line for line in lines)
        assert len(lines) == 4

    def test_nothing(self) -> None:
        """Nothing to do is said, too."""
        assert output.plan_lines(Prepared("/srv/db"), dry_run=False) == ["/srv/db: nothing to change"]

    def test_as_json(self) -> None:
        """As JSON it has the path, whether it was a dry run, what was made and changed, and the tree's numbers."""
        assert output.prepared(self.DONE, dry_run=True) == {
            "path": "/srv/db",
            "dry_run": True,
            "made": True,
            "changes": ["owner 0:0 -> 184:998"],
            "tree": {"done": 10, "changed": 3, "left": 1, "examples": ["a: is a mount point"]},
        }


class TestBar:
    def test_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe there is no bar."""
        with output.Bar("preparing mongo") as update:
            update(Progress.now(100, None, 1.0))
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal(self) -> None:
        """On a terminal it shows what is prepared and how many entries were looked at."""
        text = on_a_terminal(
            "import time; from hostprep.tree.process import Progress\n"
            "with output.Bar('preparing [b]mongo\\x1b') as update:\n"
            "    update(Progress.now(412_000, 980_000, 10.0)); time.sleep(.3)"
        )
        assert "mongo\\x1b" in text
        assert "412,000 of about 980,000 entries, 41,200/s, about 14 s left" in text


class TestProbe:
    def test_a_pull_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe a pull has no bar."""
        with output.Pull("mongo:7") as update:
            update(100, 200)
        assert capsys.readouterr() == ("", "")

    def test_a_pull_on_a_terminal(self) -> None:
        """On a terminal it shows what is pulled and how much of it is there."""
        text = on_a_terminal(
            "with output.Pull('host:5000/mongo') as update: update(0, 0); update(5, 10); import time; time.sleep(.3)"
        )
        assert "pulling host:5000/mongo" in text
        assert "5/10 bytes" in text

    def test_on_a_terminal(self) -> None:
        """On a terminal directories are a table, and what is to be pasted is in one line, however long."""
        text = on_a_terminal(
            "from hostprep.engine.image import *; from hostprep.options import Mode\n"
            "user, entry = User('', 0, 0, (), 'root'), Entry('directory', Mode(0o700), 5, 6)\n"
            "one = Directory('/' + 'd' * 100, '/d', (), entry, 5, 6, True, ('root', '[red]why'))\n"
            "output.findings(Findings('mongo', Config('sha256:1', '', (), True), user, (one,)), None, as_json=False)"
        )
        assert "DIRECTORY" in text
        assert "\t" not in text
        assert "[red]why" in text
        assert "docker run -d -v mongo:/" + "d" * 100 + " mongo" in text
