"""The command line: exit codes, one-line errors, JSON, and that it needs no server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import BASE, docker_save, tar
from tests.support.fixtures import Command
from tests.support.host import PYTHON, REPOSITORY, Done, Host, label, mode, owner, passes_of, set_label
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = ("-o", "uid=184", "-o", "gid=998")


def fails(done: Done, *words: str) -> None:
    """Exit 1 and one line that says what is wrong, and nothing on stdout."""
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("hostprep: ")
    assert line.isprintable()
    for word in words:
        assert word in line


def succeeds(done: Done) -> str:
    assert done.code == 0, done.err
    return done.out


class TestExit:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--colour"],
            ["ls", "--colour"],
            ["colour"],
            ["create"],
            ["status"],
            ["rm"],
            ["apply"],
            ["restore"],
            ["prepare"],
            ["probe"],
            ["probe", "a", "b"],
            ["probe", "--pull", "--archive", "x.tar"],
            ["doctor", "--fix"],
            ["doctor", "--user", "184:998"],
            ["doctor", "a", "b"],
            ["create", "a", "b"],
            ["restore", "a", "--id"],
            ["create", "a", "-o"],
            ["serve", "x"],
            [],
        ],
        ids=" ".join,
    )
    def test_a_wrong_flag_or_a_missing_argument(self, hostprep: Command, host: Host, arguments: list[str]) -> None:
        """A wrong flag, an unknown command and a missing argument exit 2, and nothing is done."""
        done = hostprep(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err
        assert "Traceback" not in done.err
        assert not host.root.exists()

    @pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["create", "--help"], ["prepare", "-h"]], ids=" ".join)
    def test_help(self, hostprep: Command, arguments: list[str]) -> None:
        """Help exits 0."""
        assert "Usage: hostprep" in succeeds(hostprep(*arguments))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["create", "mongo", "-o", "uid"], ["KEY=VALUE"]),
            (["create", "mongo", "-o", "uid=x"], ["option uid", "names are refused"]),
            (["create", "mongo", "-o", "uid=1", "-o", "uid=2"], ["twice"]),
            (["create", "mongo", "-o", "uidd=1"], ["did you mean uid?"]),
            (["create", "a b"], ["is not valid"]),
            (["create", "a\nb\x1b"], ["is not valid", "\\n"]),
            (["status", "other"], ["no volume other"]),
            (["rm", "other"], ["no volume other"]),
            (["rm", "--retained", "other"], ["other"]),
            (["apply", "other", "-o", "uid=1"], ["no volume other"]),
            (["apply", "here", "-o", "uid=x"], ["option uid"]),
            (["apply", "here", "--unset", "colour"], ["colour"]),
            (["apply", "here", "-o", "uid=1", "--unset", "uid"], ["uid"]),
            (["apply", "here", "-o", "path=/srv/x"], ["path"]),
            (["restore", "other"], ["other", "ls --trash"]),
            (["restore", "here"], ["here", "--as"]),
            (["purge", "x"], ["trash id"]),
            (["purge", "--all", "x"], ["not both"]),
            (["prepare", "/etc", "-o", "uid=1"], ["/etc"]),
            (["prepare", "/tmp/x", "-o", "path=/tmp/y"], ["path"]),
            (["create", "mongo", "-o", "image=x"], ["HOSTPREP_DOCKER_HOST"]),
            (["apply", "here", "-o", "image=x"], ["HOSTPREP_DOCKER_HOST"]),
            (["apply", "here", "-o", "at=/x"], ["image"]),
            (["--docker-host", "unix:///none", "create", "mongo", "-o", "image=x"], ["/none", "No such file"]),
            (["--docker-host", "tcp://127.0.0.1:1", "probe", "x"], ["HOSTPREP_DOCKER_HOST", "network"]),
            (["--docker-host", "unix:///none", "probe", "x"], ["/none", "No such file"]),
            (["probe", "X"], ["lower case"]),
            (["probe", "x", "--path", "data"], ["option at", "absolute"]),
            (["probe", "--archive", "/none.tar"], ["/none.tar", "No such file"]),
            (["create", "mongo", "-o", "path=/opt/x"], ["HOSTPREP_ALLOW"]),
            (["--docker-host", "unix:///none", "doctor", "here", "--container", "x"], ["/none", "No such file"]),
            (["--docker-host", "unix:///none", "doctor", "a b"], ["is not valid"]),
        ],
        ids=lambda value: " ".join(value).replace("\n", "").replace("\x1b", "") if isinstance(value, list) else None,
    )
    @pytest.mark.usefixtures("read_only_machine")
    def test_one_line(self, hostprep: Command, arguments: list[str], words: list[str]) -> None:
        """Whatever is wrong is one line that says what and what to do, and exit 1."""
        succeeds(hostprep("create", "here"))
        fails(hostprep(*arguments), *words)

    @pytest.mark.parametrize(
        ("variable", "flag"),
        [("HOSTPREP_PATIENCE", "--patience"), ("HOSTPREP_SELINUX", "--selinux"), ("HOSTPREP_ROOT", "--root")],
    )
    def test_wrong_settings(self, hostprep: Command, variable: str, flag: str) -> None:
        """A wrong setting is one line that names it, as a variable and as a flag."""
        fails(hostprep("ls", **{variable: "x"}), variable)
        fails(hostprep(flag, "x", "ls"), variable)

    def test_nothing_like_it_yet(self, hostprep: Command) -> None:
        """Commands that are not there yet are unknown."""
        assert hostprep("repair", "x").code == 2

    def test_a_broken_root(self, hostprep: Command, host: Host) -> None:
        """An unusable root is one line."""
        host.root.write_text("")
        fails(hostprep("ls"), str(host.root))

    def test_a_full_disk_of_words(self, hostprep: Command, host: Host) -> None:
        """An error of the system is one line with the file it is about."""
        succeeds(hostprep("create", "mongo", *MONGO))
        os.chown(host.data("mongo"), 0, 0)
        subprocess.run(["chattr", "+i", host.data("mongo")], check=True)
        done = hostprep("apply", "mongo", "-o", "uid=185")
        subprocess.run(["chattr", "-i", host.data("mongo")], check=True)
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith("hostprep: ")
        assert "not permitted" in done.err


class TestPipes:
    @pytest.mark.parametrize("count", [1, 300])
    def test_a_reader_that_goes_away(self, host: Host, hostprep: Command, count: int) -> None:
        """`hostprep ls | head -0` says nothing on stderr."""
        for number in range(count if count == 1 else 12):
            succeeds(hostprep("create", f"{'v' * (200 if count > 1 else 1)}{number}"))
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [PYTHON, "-m", "hostprep", "ls"],
            cwd=REPOSITORY,
            env=host.process_environ(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writer)
        assert done.stderr == ""
        assert done.returncode == 1

    def test_plain_text(self, hostprep: Command) -> None:
        """In a pipe every list is plain, printable lines with tabs."""
        succeeds(hostprep("create", "mongo", *MONGO))
        succeeds(hostprep("create", "redis", "-o", "on_remove=retain"))
        succeeds(hostprep("create", "old"))
        succeeds(hostprep("rm", "redis"))
        succeeds(hostprep("rm", "old"))
        for arguments in (["ls"], ["ls", "--trash"], ["ls", "--retained"], ["status", "mongo"]):
            lines = succeeds(hostprep(*arguments)).splitlines()
            assert len(lines) > 1
            assert all(line.replace("\t", "").isprintable() for line in lines)

    def test_control_characters(self, hostprep: Command, host: Host) -> None:
        """What somebody wrote on disk reaches a terminal escaped only."""
        succeeds(hostprep("create", "mongo"))
        set_label(host.data("mongo"), "a:b:c\x1b[31m\n:s0")
        for arguments in (["ls"], ["status", "mongo"]):
            out = succeeds(hostprep(*arguments))
            assert "\x1b" not in out
            assert "\\x1b[31m\\n" in out


class TestReading:
    @pytest.mark.parametrize(
        "arguments", [["ls"], ["ls", "--json"], ["ls", "--trash"], ["status", "x"], ["purge"]], ids=" ".join
    )
    def test_nothing_is_made(self, hostprep: Command, host: Host, arguments: list[str]) -> None:
        """No reading command creates the root."""
        fails(hostprep(*arguments), "does not exist")
        assert not host.root.exists()

    def test_nothing_is_changed(self, hostprep: Command, host: Host) -> None:
        """Reading commands change no file."""
        succeeds(hostprep("create", "mongo", *MONGO))
        os.chown(host.data("mongo"), 0, 0)
        before = {path: os.lstat(path).st_ctime_ns for path in host.root.rglob("*")}
        for arguments in (["ls"], ["ls", "--json"], ["ls", "--trash"], ["ls", "--retained"], ["status", "mongo"]):
            succeeds(hostprep(*arguments))
        assert {path: os.lstat(path).st_ctime_ns for path in host.root.rglob("*")} == before

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

    def test_restore(self, hostprep: Command, host: Host) -> None:
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

    def test_purge(self, hostprep: Command, host: Host) -> None:
        """purge takes what has expired, ids, or all."""
        for name in ("a", "b", "c"):
            succeeds(hostprep("create", name))
            succeeds(hostprep("rm", name))
        assert succeeds(hostprep("purge")) == "0 purged\n"
        assert succeeds(hostprep("purge", host.trash()[0])) == "1 purged\n"
        assert succeeds(hostprep("purge", "--all")) == "2 purged\n"
        assert host.trash() == []
        succeeds(hostprep("create", "a"))
        succeeds(hostprep("rm", "a"))
        assert succeeds(hostprep("--trash-keep", "0", "purge")) == "1 purged\n"

    def test_rm_retained(self, hostprep: Command, host: Host) -> None:
        """rm --retained moves retained data to the trash."""
        succeeds(hostprep("create", "mongo", "-o", "on_remove=retain"))
        succeeds(hostprep("rm", "mongo"))
        assert succeeds(hostprep("rm", "--retained", "mongo")) == "mongo\n"
        assert (host.left_in_volumes(), len(host.trash())) == ([], 1)

    def test_settings_by_flag(self, hostprep: Command, host: Host) -> None:
        """A flag before the command overrides the variable."""
        other = host.root.with_name("other")
        succeeds(
            hostprep("--root", str(other), "--selinux", "force", "create", "mongo", "-o", "label=container_file_t")
        )
        assert label(other / "volumes/mongo/_data") is not None
        assert not host.root.exists()


class TestPrepare:
    def test_it(self, hostprep: Command, tmp_path: Path) -> None:
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


class TestProbe:
    """Without an engine; with one, tests/engine."""

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


def test_as_a_module(host: Host) -> None:
    """`python -m hostprep` is the same command."""
    assert host.run("create", "mongo") == Done(0, "mongo\n", "")
    assert host.run("ls").out.splitlines()[1].startswith("mongo\t0:0\t0755\t-\tready\t")
    assert host.run("nonsense").code == 2
    assert host.run("status", "x").code == 1
