"""create, ls, status, apply, rm, restore, purge: that they need no server, and what they show."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import asdict
from typing import Any

import pytest

from hostprep.cli import output, volumes
from hostprep.tree.process import Progress
from tests.support.commands import fails, succeeds
from tests.support.fixtures import Command
from tests.support.host import PYTHON, Host, mode, mounted, owner, passes_of
from tests.support.trees import make_tree, owners

CONTAINER = """
import ctypes, os, subprocess, sys
libc, (jail, place) = ctypes.CDLL(None), sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "none", jail], check=True)
os.makedirs(jail + place)
subprocess.run(["mount", "--bind", place, jail + place], check=True)
os.chdir(jail)
assert libc.syscall({"x86_64": 155}.get(os.uname().machine, 41), b".", b".") == 0  # pivot_root(2)
assert libc.umount2(b".", 2) == 0
print("up", flush=True)
sys.stdin.read()
"""
MONGO = ("-o", "uid=184", "-o", "gid=998")


@pytest.mark.root
class TestReading:
    def test_ls_json(self, hostprep: Command, host: Host) -> None:
        """ls --json is an array of name, mountpoint, created_at and status, of all volumes."""
        succeeds(hostprep("create", "mongo", *MONGO))
        succeeds(hostprep("create", "damaged"))
        host.record("damaged").write_text("")
        damaged, mongo = hostprep("ls", "--json").json
        assert set(mongo) == set(damaged) == {"name", "mountpoint", "created_at", "status"}
        assert (mongo["name"], mongo["mountpoint"]) == ("mongo", str(host.data("mongo")))
        assert set(mongo["status"]) == {"uid", "gid", "mode", "label", "options", "ready", "drift", "warnings"}
        assert (damaged["mountpoint"], damaged["status"]["ready"]) == (None, False)
        assert damaged["status"]["warnings"]

    def test_no_volumes(self, hostprep: Command) -> None:
        """Without volumes the array is empty."""
        succeeds(hostprep("create", "mongo"))
        succeeds(hostprep("rm", "mongo"))
        assert hostprep("ls", "--json").json == []
        assert hostprep("ls", "--retained", "--json").json == []

    def test_status(self, hostprep: Command, host: Host) -> None:
        """status --json is one such object, and exits 0 whatever the drift."""
        succeeds(hostprep("create", "mongo", *MONGO))
        os.chown(host.data("mongo"), 0, 0)
        found = hostprep("status", "mongo", "--json").json
        assert found["name"] == "mongo"
        assert found["status"]["drift"] == ["owner is 0:0, declared 184:998"]
        assert "drift" in succeeds(hostprep("status", "mongo"))

    def test_status_of_a_damaged_one(self, hostprep: Command, host: Host) -> None:
        """status of a volume whose record is damaged is an error that says what is damaged."""
        succeeds(hostprep("create", "mongo"))
        host.record("mongo").write_text("")
        fails(hostprep("status", "mongo"), "mongo", "damaged")

    def test_trash_and_retained(self, hostprep: Command) -> None:
        """ls --trash and ls --retained are arrays, too."""
        for name, more in (("gone", ()), ("kept", ("-o", "on_remove=retain"))):
            succeeds(hostprep("create", name, *more))
            succeeds(hostprep("rm", name))
        (gone,) = hostprep("ls", "--trash", "--json").json
        assert {"id", "name", "removed_at"} <= set(gone)
        assert gone["name"] == "gone"
        (kept,) = hostprep("ls", "--retained", "--json").json
        assert kept["name"] == "kept"


@pytest.mark.root
class TestChanging:
    def test_create_and_rm(self, hostprep: Command, host: Host) -> None:
        """create makes the volume and prints its name; again it succeeds; rm removes it."""
        assert succeeds(hostprep("create", "mongo", *MONGO, "-o", "mode=0750")) == "mongo\n"
        assert (owner(host.data("mongo")), mode(host.data("mongo"))) == ((184, 998), "0750")
        assert succeeds(hostprep("create", "mongo", *MONGO, "-o", "mode=0750")) == "mongo\n"
        fails(hostprep("create", "mongo", "-o", "uid=1"), "exists with other options")
        assert succeeds(hostprep("rm", "mongo")) == "mongo\n"
        assert not host.volume("mongo").exists()

    def test_a_value_with_equals_signs(self, hostprep: Command, host: Host) -> None:
        """A value may hold an equals sign."""
        succeeds(hostprep("create", "mongo", "-o", f"path={host.srv}/a=b"))
        assert (host.srv / "a=b").is_dir()

    def test_apply(self, hostprep: Command, host: Host) -> None:
        """apply changes options in place and makes root and contents so before it returns."""
        succeeds(hostprep("create", "mongo", *MONGO, "-o", "mode=0750"))
        make_tree(host.data("mongo"), "dir a 184:998", "file a/b 184:998")
        before = hostprep("status", "mongo", "--json").json["created_at"]
        succeeds(hostprep("apply", "mongo", "-o", "uid=185", "--unset", "mode"))
        found = hostprep("status", "mongo", "--json").json
        assert found["status"]["options"] == {"uid": "185", "gid": "998"}
        assert (found["status"]["ready"], found["created_at"]) == (True, before)
        assert set(owners(host.data("mongo")).values()) == {(185, 998)}

    def test_apply_without_waiting(self, hostprep: Command, host: Host) -> None:
        """apply --no-wait only records."""
        succeeds(hostprep("create", "mongo", *MONGO))
        succeeds(hostprep("apply", "mongo", "-o", "uid=185", "--no-wait"))
        assert owner(host.data("mongo")) == (184, 998)
        assert hostprep("status", "mongo", "--json").json["status"]["options"]["uid"] == "185"
        assert passes_of(os.getpid()) == []

    def test_rm_retained(self, hostprep: Command, host: Host) -> None:
        """rm --retained moves retained data to the trash."""
        succeeds(hostprep("create", "mongo", "-o", "on_remove=retain"))
        succeeds(hostprep("rm", "mongo"))
        assert succeeds(hostprep("rm", "--retained", "mongo")) == "mongo\n"
        assert (host.left_in_volumes(), len(host.trash())) == ([], 1)


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


class TestShown:
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
        assert volumes.state(status(**changed)) == word

    def test_a_row(self) -> None:
        """A row has name, owner, mode, label, state and mountpoint."""
        assert volumes.row(volume()) == ["mongo", "184:998", "0750", "-", "ready", "/srv/db"]

    def test_a_row_of_a_damaged_one(self) -> None:
        """Where nothing is known there are dashes."""
        nothing = {**volume(uid=None, gid=None, mode=None, ready=False), "mountpoint": None, "created_at": None}
        assert volumes.row(nothing) == ["mongo", "-", "-", "-", "unusable", "-"]

    def test_all_of_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        """All that is known is shown, a line each, with drift and warnings in words and nothing raw."""
        progress = asdict(Progress.now(1234, 5000, 10.0))
        output.fields(volumes.lines(volume(drift=["mode is 0755"], warnings=["a\nb"], progress=progress)))
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == (
            "name state mountpoint created owner mode label options drift warning progress".split()
        )
        assert lines[9].endswith("a\\nb")
        assert lines[10].endswith("[####................] 1,234 of about 5,000 entries, 123/s, about 30 s left")


@pytest.mark.root
def test_restore(hostprep: Command, host: Host) -> None:
    """restore brings back the newest, one by its id, and under another name."""
    for text in ("old", "new"):
        succeeds(hostprep("create", "mongo"))
        make_tree(host.data("mongo"), f"file a 0:0 600 {text}")
        succeeds(hostprep("rm", "mongo"))
    first, second = host.trash()
    if (host.root / "trash" / first / "_data" / "a").read_text() != "old":
        first, second = second, first
    assert succeeds(hostprep("restore", "mongo", "--id", first, "--as", "older")) == "older\n"
    assert succeeds(hostprep("restore", "mongo")) == "mongo\n"
    assert [(host.data(name) / "a").read_text() for name in ("older", "mongo")] == ["old", "new"]


@pytest.mark.root
def test_restore_with_a_label_that_is_not_utf8(hostprep: Command) -> None:
    """A label that no engine takes is refused before anything is restored."""
    succeeds(hostprep("create", "mongo"))
    succeeds(hostprep("rm", "mongo"))
    fails(hostprep("restore", "mongo", "--label", "backup=\udcff"), "is not UTF-8")
    assert hostprep("ls", "--json").json == []


@pytest.mark.root
def test_purge(hostprep: Command, host: Host) -> None:
    """purge takes what has expired, ids, or all."""
    for name in ("one", "two", "three"):
        succeeds(hostprep("create", name))
        succeeds(hostprep("rm", name))
    assert succeeds(hostprep("purge")) == "0 purged\n"
    assert succeeds(hostprep("purge", host.trash()[0])) == "1 purged\n"
    assert succeeds(hostprep("purge", "--all")) == "2 purged\n"
    assert host.trash() == []
    succeeds(hostprep("create", "one"))
    succeeds(hostprep("rm", "one"))
    assert succeeds(hostprep("--trash-keep", "0", "purge")) == "1 purged\n"


@pytest.mark.root
def test_purge_of_what_is_in_use(hostprep: Command, host: Host) -> None:
    """purge says what it does not delete, and why, and exits 1; not where nothing was due."""
    succeeds(hostprep("create", "mongo"))
    succeeds(hostprep("rm", "mongo"))
    (entry,) = host.trash()
    (host.srv / "here").mkdir()
    with mounted("--bind", f"{host.root}/trash/{entry}/_data", f"{host.srv}/here"):
        for what in ("--all", entry):
            done = hostprep("purge", what)
            assert (done.code, done.out) == (1, "0 purged\n")
            assert f"{entry} is not purged: it is mounted at {host.srv}/here" in done.err
            assert "1 removed volumes were not purged (the lines above say why)" in done.err
        assert succeeds(hostprep("purge")) == "0 purged\n"
        assert (
            hostprep("ls", "--trash", "--json").json[0]["state"]
            == f"not to be purged: it is mounted at {host.srv}/here"
        )
    assert hostprep("ls", "--trash", "--json").json[0]["state"] == "restorable"


@pytest.mark.root
@pytest.mark.parametrize("path", [None, "path"])
def test_rm_of_what_is_in_use(hostprep: Command, host: Host, path: str | None) -> None:
    """rm refuses a volume that a container has mounted, by whatever engine; --force removes it, and its data stays."""
    options = [] if path is None else ["-o", f"path={host.srv}/{path}"]
    place = host.data("mongo") if path is None else host.srv / path
    succeeds(hostprep("create", "mongo", *options))
    (host.srv / "here").mkdir()
    (place / "file").touch()
    with mounted("--bind", str(place), f"{host.srv}/here"):
        fails(hostprep("rm", "mongo"), "volume mongo is in use: it is mounted at", "--force")
        assert host.left_in_volumes() == ["mongo"]
        assert succeeds(hostprep("rm", "--force", "mongo")) == "mongo\n"
        assert (host.srv / "here" / "file").exists()
        if path is None:
            assert hostprep("purge", "--all").code == 1
            assert (host.srv / "here" / "file").exists()
    assert succeeds(hostprep("purge", "--all")) == "1 purged\n"


@pytest.mark.root
def test_rm_of_what_a_container_has_at_the_same_path(hostprep: Command, host: Host) -> None:
    """rm refuses a volume whose `path` is its path in a container, too."""
    succeeds(hostprep("create", "mongo", "-o", f"path={host.srv}/path"))
    (host.srv / "jail").mkdir()
    command = ["unshare", "-m", PYTHON, "-c", CONTAINER, f"{host.srv}/jail", f"{host.srv}/path"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        fails(hostprep("rm", "mongo"), f"process {running.pid} has it mounted at {host.srv}/path")
        running.kill()
    succeeds(hostprep("rm", "mongo"))


@pytest.mark.root
def test_rm_of_what_only_hostprep_has_mounted(hostprep: Command, host: Host) -> None:
    """The mount that hostprep answers instead of a path, and a disk that is mounted at the path, are no uses."""
    (host.srv / "home").mkdir()
    os.chown(host.srv / "home", 1000, 1000)
    with mounted("-t", "tmpfs", "none", f"{host.srv}/home"):
        os.chown(host.srv / "home", 1000, 1000)
        for path in ("home", "home/data"):
            succeeds(hostprep("create", "mongo", "-o", f"path={host.srv}/{path}"))
            succeeds(hostprep("apply", "mongo"))
            assert succeeds(hostprep("rm", "mongo")) == "mongo\n"


@pytest.mark.root
def test_rm_retained_of_what_is_in_use(hostprep: Command, host: Host) -> None:
    """rm --retained refuses it, too; and so does rm where the record is damaged or a disk is mounted on the data."""
    succeeds(hostprep("create", "mongo", "-o", "on_remove=retain"))
    succeeds(hostprep("rm", "mongo"))
    (host.srv / "here").mkdir()
    with mounted("--bind", str(host.data("mongo")), f"{host.srv}/here"):
        fails(hostprep("rm", "--retained", "mongo"), "is in use")
    with mounted("-t", "tmpfs", "none", str(host.data("mongo"))):
        fails(hostprep("rm", "--retained", "mongo"), "_data is a mount point")
    succeeds(hostprep("rm", "--retained", "mongo"))


@pytest.mark.root
def test_a_full_disk(hostprep: Command, host: Host) -> None:
    """On a full disk the error says that purge frees space, and purge does."""
    host.root.mkdir(mode=0o700)
    with mounted("-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(host.root)):
        for name in ("mongo", "other"):
            succeeds(hostprep("create", name))
        with contextlib.suppress(OSError), (host.data("mongo") / "file").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        fails(hostprep("create", "more"), "No space left on device", "hostprep purge deletes removed volumes")
        succeeds(hostprep("rm", "mongo"))
        assert succeeds(hostprep("purge", "--all")) == "1 purged\n"
        succeeds(hostprep("create", "more"))
