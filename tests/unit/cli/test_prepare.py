"""prepare: any directory, without a volume. repair: a volume, with its contents."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hostprep.cli import prepare
from hostprep.tree.directory import Prepared
from hostprep.tree.plan import Change
from hostprep.tree.walk import Outcome
from tests.support.commands import fails, on_a_terminal, succeeds
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


@pytest.mark.root
class TestRepair:
    @pytest.fixture
    def data(self, hostprep: Command, host: Host) -> Path:
        """The directory of a volume with contents of root's."""
        succeeds(hostprep("create", "mongo", *MONGO))
        make_tree(host.data("mongo"), "dir conf", "file conf/main", "file own 184:998")
        return host.data("mongo")

    def test_it_mends(self, hostprep: Command, data: Path) -> None:
        """repair gives everything the declared owner, says what it did, and Status has nothing to say any more."""
        assert "hostprep repair mongo" in succeeds(hostprep("status", "mongo"))
        os.chown(data, 0, 0)
        assert succeeds(hostprep("repair", "mongo")).splitlines() == [
            "mongo: changed owner 0:0 -> 184:998",
            "mongo: changed 2 of 3 entries below it",
        ]
        assert owner(data) == (184, 998)
        assert set(owners(data).values()) == {(184, 998)}
        assert "warning" not in succeeds(hostprep("status", "mongo"))
        assert succeeds(hostprep("repair", "mongo")) == "mongo: changed 0 of 3 entries below it\n"

    def test_as_json(self, hostprep: Command, data: Path) -> None:
        """As JSON it has the name, whether it was a dry run, what was changed, and the tree's numbers."""
        plan: Any = json.loads(succeeds(hostprep("repair", "--dry-run", "--json", "mongo")))
        planned = plan["tree"].pop("planned")
        assert sorted(planned) == ["conf/main: owner 0:0", "conf: owner 0:0"]
        numbers = {"done": 3, "changed": 2, "left": 0, "examples": []}
        assert plan == {"name": "mongo", "dry_run": True, "changes": [], "tree": numbers}
        done: Any = json.loads(succeeds(hostprep("repair", "--json", "mongo")))
        assert done == {**plan, "dry_run": False, "tree": {**numbers, "planned": []}}

    def test_a_dry_run(self, hostprep: Command, data: Path) -> None:
        """--dry-run says what would be changed, and the first of it, and changes nothing."""
        first, *more = succeeds(hostprep("repair", "--dry-run", "mongo")).splitlines()
        assert first == "mongo: would change 2 of 3 entries below it"
        assert sorted(more) == ["mongo: would change conf/main: owner 0:0", "mongo: would change conf: owner 0:0"]
        assert owner(data / "conf") == (0, 0)

    def test_left_alone(self, hostprep: Command, host: Host) -> None:
        """What is left alone is told, and is no failure."""
        make_tree(host.srv, "dir db", "file db/a", "link db/b db/a")
        succeeds(hostprep("create", "mongo", *MONGO, "-o", f"path={host.srv}/db"))
        out = succeeds(hostprep("repair", "mongo"))
        assert "mongo: left alone a: has 2 hard links" in out.splitlines()
        assert owner(host.srv / "db" / "a") == (0, 0)

    @pytest.mark.parametrize("flags", [[], ["--dry-run"]])
    def test_refused(self, hostprep: Command, host: Host, flags: list[str]) -> None:
        """What cannot be repaired is refused in words."""
        for name, *options in [("plain",), ("damaged", *MONGO), ("kept", *MONGO, "-o", "on_remove=retain")]:
            succeeds(hostprep("create", name, *options))
        succeeds(hostprep("rm", "kept"))
        host.record("damaged").write_text("{")
        fails(hostprep("repair", *flags, "other"), "no volume other", "hostprep ls shows those there are")
        fails(hostprep("repair", *flags, "kept"), "no volume kept", "retained", "hostprep create kept")
        fails(hostprep("repair", *flags, "damaged"), "volume damaged: its record is damaged")
        fails(hostprep("repair", *flags, "plain"), "declares no owner and no label", "hostprep apply plain -o uid=")

    def test_a_bar(self, host: Host, data: Path) -> None:
        """On a terminal it shows a bar."""
        code = (
            "import sys, time; from hostprep.__main__ import main; from hostprep.volumes.driver import Driver\n"
            "from hostprep.tree.process import Progress\n"
            "do = Driver.repair\n"
            "def slowly(self, name, *, dry_run, report):\n"
            "    report(Progress(1000, 4000, 500.0, 6.0)); time.sleep(0.5)\n"
            "    return do(self, name, dry_run=dry_run, report=report)\n"
            "Driver.repair = slowly; sys.argv = ['hostprep', 'repair', 'mongo']; main()"
        )
        shown = on_a_terminal(code, **host.environ)
        assert "repairing mongo" in shown
        assert "1,000 of about 4,000 entries, 500/s, about 6 s left" in shown
        assert "mongo: changed 2 of 3 entries below it" in shown


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

    def test_what_is_planned(self) -> None:
        """A plan has the first of the entries, and what they are now."""
        tree = Outcome(10, 3, planned=["a: owner 0:0", "b/c: owner 1:1, label none"])
        assert prepare.lines(Prepared("/srv/db", tree=tree), dry_run=True) == [
            "/srv/db: would change 3 of 10 entries below it",
            "/srv/db: would change a: owner 0:0",
            "/srv/db: would change b/c: owner 1:1, label none",
        ]

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
            "tree": {"done": 10, "changed": 3, "left": 1, "examples": ["a: is a mount point"], "planned": []},
        }
