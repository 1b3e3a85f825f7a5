"""The whole of it: what is denied without hostprep, and works with it, with the kernel as witness."""

from __future__ import annotations

import os
from pathlib import Path

from .guest import CONTAINER_FILE, Audit, Docker, Hostprep, checked, label, owner

USE = """
    echo one > /data/file; cat /data/file; echo two >> /data/file; mv /data/file /data/moved
    mkdir /data/dir; mv /data/moved /data/dir/file; ln -s file /data/dir/link; cat /data/dir/link
    chmod 0600 /data/dir/file; touch /data/dir/other; ls /data /data/dir; rm -r /data/dir/other
"""
USED = "one\none\ntwo\n/data:\ndir\n\n/data/dir:\nfile\nlink\nother"


def test_before(docker: Docker, audit: Audit) -> None:
    """By hand: owner and mode are right, the label is a home directory's, and the kernel denies it."""
    directory = Path("/home/user/mongodb")
    directory.mkdir(mode=0o750)
    os.chown(directory, 184, 998)
    checked("restorecon", "-F", str(directory))

    printed = docker.run(f"{directory}:/data", "echo written > /data/file")

    assert "can't create /data/file: Permission denied" in printed
    denied = {(denial.tclass, denial.target.split(":")[2]) for denial in audit.denials()}
    assert denied == {("dir", "user_home_t")}


def test_after(docker: Docker, audit: Audit) -> None:
    """Through hostprep 184:998 reads, writes, creates, renames, removes, and the kernel denies nothing."""
    mountpoint = docker.create("mongo")

    assert docker.run("mongo:/data", USE) == USED

    assert audit.denials() == []
    assert {label(path) for path in (mountpoint, *mountpoint.rglob("*"))} == {CONTAINER_FILE}
    assert owner(mountpoint) == owner(mountpoint / "dir/file") == "184:998"


def test_domain(hostprep: Hostprep) -> None:
    """All this is done by the shipped unit, in the domain of services without a policy of their own."""
    assert hostprep.domain().split(":")[2] == "initrc_t"


def test_restorecon(docker: Docker, hostprep: Hostprep, srv: Path, audit: Audit) -> None:
    """After somebody's restorecon the running container is denied; its next start has the labels back."""
    tree = srv / "mongodb"  # for what is below the root the installation has a rule (test_lasting)
    docker.create("mongo", path=str(tree), label="container_file_t", recurse="mismatch")
    docker.daemon("db", "mongo:/data")
    docker.exec("db", "echo written > /data/file")
    checked("restorecon", "-R", "-F", str(tree))
    assert "Permission denied" in docker.exec("db", "cat /data/file")
    assert {denial.target.split(":")[2] for denial in audit.denials()} == {"var_t"}

    docker("restart", "db")

    assert docker.exec("db", "echo more >> /data/file; cat /data/file") == "written\nmore"
    assert audit.denials() == []
    assert label(tree / "file") == CONTAINER_FILE
    assert f"repaired mongo: label system_u:object_r:var_t:s0 -> {CONTAINER_FILE}" in hostprep.log()


def test_adopted_tree(docker: Docker, srv: Path, audit: Audit) -> None:
    """A tree moved out of a home keeps label and owners; with recurse=mismatch all of it follows."""
    home = Path("/home/user/old")
    (home / "deeper").mkdir(parents=True)
    (home / "from_outside").write_text("from outside\n")
    (home / "deeper/file").write_text("deeper\n")
    checked("restorecon", "-R", "-F", str(home))
    tree = srv / "mongodb"
    home.rename(tree)
    os.symlink("/etc/shadow", tree / "link")
    shadow = label(Path("/etc/shadow")), owner(Path("/etc/shadow"))
    assert ":user_home_t:" in label(tree / "from_outside")

    docker.create("mongo", path=str(tree), label="container_file_t", recurse="mismatch")

    script = "cat /data/from_outside; echo more >> /data/deeper/file; rm /data/from_outside"
    assert docker.run("mongo:/data", script) == "from outside"
    assert audit.denials() == []
    assert {label(path) for path in (tree, *tree.rglob("*"))} == {CONTAINER_FILE}
    assert {owner(path) for path in (tree, *tree.rglob("*"))} == {"184:998"}
    assert shadow == (label(Path("/etc/shadow")), owner(Path("/etc/shadow")))


def test_home(docker: Docker, audit: Audit) -> None:
    """The case of the old guides, `~/mongodb` below the user's own home with what he had put into it: all follows."""
    tree = Path("/home/user/mongo")
    tree.mkdir()
    (tree / "from_outside").write_text("from outside\n")
    for path in (tree, tree / "from_outside"):
        os.chown(path, 1000, 1000)
    checked("restorecon", "-R", "-F", str(tree))
    assert ":user_home_t:" in label(tree / "from_outside")

    docker.create("mongo", path=str(tree), label="container_file_t", recurse="mismatch")

    script = "cat /data/from_outside; echo more >> /data/from_outside; echo new > /data/file"
    assert docker.run("mongo:/data", script) == "from outside"
    assert audit.denials() == []
    assert (tree / "from_outside").read_text() == "from outside\nmore\n"
    assert {label(path) for path in (tree, *tree.rglob("*"))} == {CONTAINER_FILE}
    assert {owner(path) for path in (tree, *tree.rglob("*"))} == {"184:998"}


def test_adopted_root(docker: Docker, srv: Path) -> None:
    """Without recurse the adopted directory itself gets the label, and what was in it keeps its own."""
    tree = srv / "mongodb"
    tree.mkdir()
    (tree / "from_outside").write_text("from outside\n")

    docker.create("mongo", path=str(tree), label="container_file_t")

    assert label(tree) == CONTAINER_FILE
    assert ":var_t:" in label(tree / "from_outside")
