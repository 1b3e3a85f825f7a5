"""doctor and a container that has only a sub-directory of a volume: it judges that, and changes nothing else.

For engines that give a container one (Docker 26, Podman 5.4): tests/engine/conftest.py leaves it out for others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.remedies import Row, Table, hold

from .client import IDS, OPTIONS, WRITE, Docker, Podman
from .doctor import Doctor, Situation
from .podman.conftest import configured, podman  # noqa: F401
from .podman.test_service import Service, service  # noqa: F401

pytestmark = pytest.mark.engine


class Tree:
    """A volume of 184:998 in which directories have other owners, and who owns what of it."""

    def __init__(self, docker: Docker, *options: str, **directories: str) -> None:
        self.docker = docker
        self.data = Path(docker.create("mongo", *(options or OPTIONS)))
        for name, ids in {"theirs": "7:8", "theirs/deep": "7:8", **directories}.items():
            self.make(name, ids)

    def make(self, name: str, ids: str, mode: int = 0o750) -> Path:
        path = self.data / name
        path.mkdir()
        path.chmod(mode)
        os.chown(path, *map(int, ids.split(":")))
        return path

    def run(self, name: str, subpath: str, *flags: str, user: str = IDS, more: str = "") -> None:
        mount = f"type=volume,src=mongo,dst=/data,volume-subpath={subpath}{more}"
        flags = ("--name", name, "-u", user, "--mount", mount, "--stop-signal", "KILL", *flags)
        self.docker("run", "-d", *flags, "busybox", "sleep", "600")

    def owners(self, *without: str) -> dict[str, tuple[int, int, int]]:
        """Owner and mode of all there is, but for what is in the sub-directories *without*."""
        found = {}
        for path in [self.data, *self.data.rglob("*")]:
            name = str(path.relative_to(self.data))
            if not any(name == each or name.startswith(f"{each}/") for each in without):
                st = path.lstat()
                found[name] = st.st_uid, st.st_gid, st.st_mode
        return found


brings_out: Table[Situation] = Table()


@brings_out("owner of a subpath", "hostprep prepare DIRECTORY -o uid=184 -o gid=998")
def owner(here: Situation) -> str:
    tree = Tree(here.run, mine="0:0")
    (tree.data / "mine/file").touch(mode=0o600)
    tree.run("db", "mine")
    return f"{tree.data}/mine"


@brings_out("owner of a subpath", "hostprep prepare DIRECTORY -o uid=184")
def owner_without_a_group(here: Situation) -> str:
    tree = Tree(here.run, "-o", "uid=184", mine="0:0")
    tree.run("db", "mine")
    return f"{tree.data}/mine"


@brings_out("owner of a subpath", "hostprep prepare DIRECTORY -o uid=7 -o gid=8")
def another_user_than_the_declared_one(here: Situation) -> str:
    tree = Tree(here.run, mine="0:0")
    tree.run("db", "mine", user="7:8")
    return f"{tree.data}/mine"


@brings_out("owner of a subpath", "hostprep prepare DIRECTORY -o mode=0750")
def mode(here: Situation) -> str:
    tree = Tree(here.run, mine="184:998")
    (tree.data / "mine").chmod(0o050)
    tree.run("db", "mine")
    return f"{tree.data}/mine"


@brings_out("owner of a subpath", "hostprep prepare DIRECTORY -o uid=184 -o gid=998")
def behind_links(here: Situation) -> str:
    """A link within the volume is followed, and the command names what it leads to."""
    tree = Tree(here.run, mine="0:0")
    (tree.data / "link").symlink_to("mine")
    tree.run("db", "link")
    return f"{tree.data}/mine"


@brings_out("group of a subpath", "hostprep prepare DIRECTORY -o mode=0770")
def group(here: Situation) -> str:
    tree = Tree(here.run, mine="5:44")
    tree.run("db", "mine", "--group-add", "44")
    return f"{tree.data}/mine"


@brings_out(
    "contents of a subpath", "hostprep prepare DIRECTORY -o uid=184 -o gid=998 -o recurse=always", uses="cat /data/file"
)
def contents(here: Situation) -> str:
    tree = Tree(here.run, mine="184:998")
    (tree.data / "mine/file").touch(mode=0o600)
    tree.run("db", "mine")
    return f"{tree.data}/mine"


@brings_out("no subpath", "hostprep prepare DIRECTORY -o uid=184 -o gid=998 && docker restart db")
def removed_under_the_container(here: Situation) -> str:
    tree = Tree(here.run, mine="184:998")
    tree.run("db", "mine")
    (tree.data / "mine").rmdir()
    return f"{tree.data}/mine"


@brings_out("no subpath", "hostprep prepare …", denied=False)
def that_was_never_there(here: Situation) -> str:
    tree = Tree(here.run)
    mount = "type=volume,src=mongo,dst=/data,volume-subpath=mine/deep"
    here.run("create", "--name", "db", "-u", IDS, "--mount", mount, "--stop-signal", "KILL", "busybox", "sleep", "600")
    return f"{tree.data}/mine/deep"


@pytest.mark.parametrize(("row", "fix"), brings_out.parameters())
def test_remedy(situation: Situation, row: Row[Situation], fix: bool) -> None:  # noqa: FBT001
    """What doctor prints, or --fix does, holds, and changes nothing but the sub-directory that the container has."""
    before: dict[str, tuple[int, int, int]] = {}
    tree: list[Tree] = []

    def arrange(here: Situation) -> str:
        directory = row.arrange(here)
        assert directory
        found = Tree.__new__(Tree)
        found.docker, found.data = here.run, Path(here.run.mountpoint("mongo"))
        tree.append(found)
        before.update(found.owners("mine"))
        return directory

    hold(situation, Row(row.code, arrange, row.command, row.uses, row.denied), fix=fix)

    assert tree[0].owners("mine") == before


def test_parents(doctor: Doctor, docker: Docker) -> None:
    """A directory above that the user cannot enter is in nobody's way, and no remedy opens it."""
    tree = Tree(docker, closed="0:0")
    tree.data.joinpath("closed").chmod(0o700)
    tree.make("closed/mine", IDS)
    tree.run("db", "closed/mine")
    before = tree.owners()
    doctor.well("mongo", "--container", "db")
    assert doctor("mongo", "--fix").returncode == 0
    assert tree.owners() == before
    assert docker.exec("db", WRITE) == "written"


def test_root_and_subpath(doctor: Doctor, docker: Docker) -> None:
    """Of a container that has both, both are judged: --fix gives it the one that it cannot use."""
    tree = Tree(docker, "-o", "uid=184", "-o", "gid=998", mine="0:0")
    more = ("--mount", "type=volume,src=mongo,dst=/whole")
    tree.run("db", "mine", *more)
    checks = [
        (each["check"], each["verdict"]) for each in doctor.found("mongo")["findings"] if each["check"] == "owner"
    ]
    assert sorted(checks) == [("owner", "bad"), ("owner", "ok")]
    docker("rm", "-f", "db")
    (tree.data / "theirs/deep").rmdir()
    (tree.data / "theirs").rmdir()
    tree.run("db", "mine", *more)
    assert doctor("mongo", "--fix").returncode == 0
    assert tree.owners("mine")["."][:2] == (184, 998)
    assert docker.exec("db", WRITE + "; echo too > /whole/file") == "written"


def test_two_users(doctor: Doctor, docker: Docker) -> None:
    """Two containers of two users with a sub-directory each: --fix gives each its own, and the volume to none."""
    tree = Tree(docker, mine="0:0", other="0:0")
    tree.run("db", "mine")
    tree.run("second", "other", user="7:8")
    before = tree.owners("mine", "other")
    assert doctor("mongo", "--fix").returncode == 0
    assert tree.owners("mine", "other") == before
    assert [os.stat(tree.data / name).st_uid for name in ("mine", "other")] == [184, 7]
    for name in ("db", "second"):
        assert docker.exec(name, WRITE) == "written"


def test_two_users_of_one(doctor: Doctor, docker: Docker) -> None:
    """What would take a directory from a container of another user, above it or below, is not printed."""
    tree = Tree(docker, mine="0:0", **{"mine/deep": "7:8"})
    tree.run("db", "mine")
    tree.run("second", "mine/deep", user="7:8")
    bad = [each for each in doctor.found("mongo")["findings"] if each["verdict"] == "bad"]
    assert [(each["fix"], "--container" in each["wanted"]) for each in bad] == [("", True)]
    assert "--container" in doctor.fails("mongo", "--fix", "--json")


def test_read_only(doctor: Doctor, docker: Docker) -> None:
    """For a sub-directory with :ro, reading is enough; a container that is asked about is told of the :ro."""
    tree = Tree(docker, mine="0:0")
    tree.data.joinpath("mine").chmod(0o755)
    tree.run("db", "mine", more=",readonly")
    doctor.well("mongo")
    found = [
        each["what"] for each in doctor.found("mongo", "--container", "db")["findings"] if each["verdict"] == "bad"
    ]
    assert f"container db has {tree.data}/mine read-only (:ro)" in found
    tree.data.joinpath("mine").chmod(0o700)
    assert doctor.finding("owner", "mongo")["fix"].startswith(f"hostprep prepare {tree.data}/mine ")


def test_drift_of_the_rest(doctor: Doctor, docker: Docker) -> None:
    """What is not as declared in the rest of the volume is told, and left to the next start."""
    tree = Tree(docker, mine="184:998")
    tree.run("db", "mine")
    tree.data.chmod(0o700)
    os.chown(tree.data, 5, 6)
    before = tree.owners()
    (drift,) = [each for each in doctor.found("mongo")["findings"] if each["check"] == "drift"]
    assert (drift["verdict"], drift["fix"]) == ("warning", "")
    assert doctor("mongo", "--fix").returncode == 0
    assert tree.owners() == before


def test_what_would_be_undone(doctor: Doctor, docker: Docker) -> None:
    """Where each start gives all contents to the declared owner, no command is printed that it would undo."""
    tree = Tree(docker, *OPTIONS, "-o", "recurse=always", mine="0:0")
    tree.run("db", "mine", user="7:8")
    finding = doctor.finding("owner", "mongo")
    assert finding["fix"] == ""
    assert "a volume of its own" in finding["wanted"]


@pytest.mark.parametrize(
    ("target", "verdict", "says"),
    [
        ("/etc", "bad", "leads out of the volume"),
        ("nowhere", "bad", "leads to what is not there"),
        ("file", "note", ""),
    ],
)
def test_links(doctor: Doctor, docker: Docker, target: str, verdict: str, says: str) -> None:
    """A link out of the volume is not followed, and a command for what is not there is not printed through a link."""
    tree = Tree(docker)
    (tree.data / "file").touch()
    (tree.data / "mine").symlink_to(target)
    mount = "type=volume,src=mongo,dst=/data,volume-subpath=mine"
    docker("create", "--name", "db", "-u", IDS, "--mount", mount, "busybox", "sleep", "600")
    found = doctor.found("mongo", "--container", "db")["findings"]
    (finding,) = [each for each in found if "subpath" in each["what"]]
    assert (finding["verdict"], finding["fix"]) == (verdict, "")
    assert says in finding["what"]


def test_no_other_directory_of_hostpreps(doctor: Doctor, docker: Docker, hostprep: object) -> None:
    """prepare takes what is in a volume, and still nothing else of hostprep's root."""
    tree = Tree(docker)
    for path in (tree.data, tree.data.parent, tree.data.parent.parent, tree.data.parents[2]):
        done = doctor.hostprep.command("prepare", str(path), "-o", "uid=7")
        assert (done.returncode, done.stdout) == (1, "")
    assert doctor.hostprep.command("prepare", f"{tree.data}/theirs", "-o", "uid=9").returncode == 0


def test_podman(service: Service, podman: Podman, doctor: Doctor) -> None:  # noqa: F811
    """Podman tells the sub-directory in its own API: that is judged, and what is printed is for Podman."""
    podman("volume", "create", "--driver", "hostprep", *OPTIONS, "mongo")
    data = Path(podman.mountpoint("mongo"))
    for name, ids in {"mine": (0, 0), "theirs": (7, 8)}.items():
        (data / name).mkdir(mode=0o750)
        os.chown(data / name, *ids)
    mount = "type=volume,src=mongo,dst=/data,subpath=mine"
    podman("run", "-d", "--name", "db", "-u", IDS, "--mount", mount, "--stop-signal", "KILL", "busybox", "sleep", "600")
    asked = doctor.hostprep.command("--docker-host", service.host, "doctor", "mongo", "--container", "db", "--json")
    (bad,) = [each for each in json.loads(asked.stdout)["findings"] if each["verdict"] == "bad"]
    assert bad["fix"] == f"hostprep prepare {data}/mine -o uid=184 -o gid=998"
    doctor.paste(bad["fix"])
    (data / "mine").rename(data / "moved")
    (data / "mine").mkdir()
    os.chown(data / "mine", 184, 998)
    asked = doctor.hostprep.command("--docker-host", service.host, "doctor", "mongo", "--container", "db", "--json")
    (bad,) = [each for each in json.loads(asked.stdout)["findings"] if each["verdict"] == "bad"]
    assert bad["fix"] == "podman restart db"
    assert os.stat(data / "theirs").st_uid == 7
    assert podman("exec", "db", "sh", "-euc", WRITE) == "written"
