"""prepare: any directory, without a volume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hostprep.cli import prepare
from hostprep.tree.directory import Prepared
from hostprep.tree.plan import Change
from hostprep.tree.walk import Outcome
from tests.support.commands import fails, succeeds
from tests.support.fixtures import Command
from tests.support.host import Host, owner
from tests.support.trees import make_tree, owners

MONGO = ("-o", "uid=184", "-o", "gid=998")


@pytest.mark.root
class TestPrepare:
    def test_owner_and_mode(self, hostprep: Command, tmp_path: Path) -> None:
        """prepare gives any directory owner and mode, contents first, and says what it did."""
        make_tree(tmp_path, "dir db", "file db/a")
        out = succeeds(hostprep("prepare", str(tmp_path / "db"), *MONGO, "-o", "mode=0750"))
        assert owner(tmp_path / "db") == owner(tmp_path / "db/a") == (184, 998)
        assert f"{tmp_path}/db: changed owner 0:0 -> 184:998" in out.splitlines()
        assert "nothing to change" in succeeds(hostprep("prepare", str(tmp_path / "db"), *MONGO))

    def test_a_dry_run(self, hostprep: Command, tmp_path: Path) -> None:
        """--dry-run prints the plan and changes nothing."""
        make_tree(tmp_path, "dir db", "file db/a")
        out = succeeds(hostprep("prepare", "--dry-run", str(tmp_path / "db"), *MONGO))
        assert all("would" in line for line in out.splitlines())
        plan: Any = json.loads(succeeds(hostprep("prepare", "--dry-run", "--json", str(tmp_path / "db"), *MONGO)))
        assert (plan["dry_run"], plan["changes"]) == (True, ["owner 0:0 -> 184:998"])
        assert set(owners(tmp_path / "db").values()) == {(0, 0)}

    def test_no_root_is_needed(self, hostprep: Command, host: Host, tmp_path: Path) -> None:
        """It makes no root of hostprep's."""
        succeeds(hostprep("prepare", str(tmp_path / "db"), *MONGO))
        assert not host.root.exists()

    def test_a_relative_path(self, hostprep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path is one below the working directory."""
        monkeypatch.chdir(tmp_path)
        succeeds(hostprep("prepare", "db", *MONGO))
        assert owner(tmp_path / "db") == (184, 998)

    @pytest.mark.parametrize(
        "path",
        [
            "b/link/../x",
            "HERE/b/link/../x",
            "./b/link/../x",
            "../below/b/link/../x",
            "b/link/..",
            "b/../b/x",
            ".../../x",
            "",
        ],
    )
    def test_up_from_a_name(
        self, hostprep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        """`..` behind a name, which may be a link's, is refused in words, and an empty path, too."""
        make_tree(tmp_path, "dir below/b/x", "dir elsewhere/x", "dir elsewhere/y")
        make_tree(tmp_path, "symlink below/b/link ../../elsewhere/y")
        monkeypatch.chdir(tmp_path / "below")
        for more in ([], ["--dry-run"]):
            fails(
                hostprep("prepare", path.replace("HERE", f"{tmp_path}/below"), *MONGO, *more), "write the directory's"
            )
        assert set(owners(tmp_path).values()) == {(0, 0)}

    @pytest.mark.parametrize("path", ["../db", ".././db/", "..//..//above//db", "./db"])
    def test_up_from_the_working_directory(
        self, hostprep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        """`..` at the beginning is what is above the working directory, by whatever link that was entered."""
        make_tree(tmp_path, "dir above/db", "dir above/below/db", "symlink link above/below")
        monkeypatch.chdir(tmp_path / "link")
        succeeds(hostprep("prepare", path, *MONGO))
        assert owner(tmp_path / "above" / ("below/db" if path == "./db" else "db")) == (184, 998)


class TestShown:
    DONE = Prepared("/srv/db", True, [Change("owner", "0:0", "184:998")], Outcome(10, 3, 1, ["a: is a mount point"]))

    def test_in_words(self) -> None:
        """What was done is a sentence each."""
        assert prepare.lines(self.DONE, dry_run=False) == [
            "/srv/db: made the directory",
            "/srv/db: changed owner 0:0 -> 184:998",
            "/srv/db: changed 3 of 10 entries below it",
            "/srv/db: left alone a: is a mount point",
        ]

    def test_a_plan_in_words(self) -> None:
        """What would be done says so."""
        lines = prepare.lines(self.DONE, dry_run=True)
        assert all("would " in line for line in lines)
        assert len(lines) == 4

    def test_nothing(self) -> None:
        """Nothing to do is said, too."""
        assert prepare.lines(Prepared("/srv/db"), dry_run=False) == ["/srv/db: nothing to change"]

    def test_as_json(self) -> None:
        """As JSON it has the path, whether it was a dry run, what was made and changed, and the tree's numbers."""
        assert prepare.in_json(self.DONE, dry_run=True) == {
            "path": "/srv/db",
            "dry_run": True,
            "made": True,
            "changes": ["owner 0:0 -> 184:998"],
            "warnings": [],
            "tree": {"done": 10, "changed": 3, "left": 1, "examples": ["a: is a mount point"]},
        }
