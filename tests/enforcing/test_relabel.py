"""What Docker does to labels itself: copy-up at create, and the :z and :Z of a volume flag."""

from __future__ import annotations

import re

from .guest import CONTAINER_FILE, Audit, Docker, Hostprep, label

PRIVATE = f"{CONTAINER_FILE}:c1,c2"
LEVEL = "--security-opt=label=level:s0:c1,c2"


def test_copy_up(docker: Docker, audit: Audit) -> None:
    """Copy-up gives the volume the type of containers' own files; before the start it is as declared."""
    mountpoint = docker.create("mongo", label="docker_var_lib_t")

    printed = docker.run("mongo:/data", "cat /data/seed; echo more >> /data/seed", image="copyup")

    assert printed == "from the image"
    declared = CONTAINER_FILE.replace("container_file_t", "container_var_lib_t")
    assert label(mountpoint) == label(mountpoint / "seed") == declared
    assert audit.denials() == []


def test_copy_up_default(docker: Docker, audit: Audit) -> None:
    """What copy-up put into a volume without a declared label can be read by the next container as well."""
    mountpoint = docker.create("mongo")
    assert docker.run("mongo:/data", "cat /data/seed", image="copyup") == "from the image"

    # This image has no /data: the engine does not relabel the volume for it.
    printed = docker.run("mongo:/data", "cat /data/seed; echo more >> /data/seed", image="busybox")

    assert printed == "from the image"
    assert label(mountpoint) == label(mountpoint / "seed") == CONTAINER_FILE
    assert audit.denials() == []


def test_nocopy(docker: Docker, audit: Audit) -> None:
    """With :nocopy the volume is empty, labelled as declared, and writable."""
    mountpoint = docker.create("mongo", label="container_file_t:s0:c1,c2")

    assert docker.run("mongo:/data:nocopy", "ls -A /data; echo > /data/file", LEVEL, image="copyup") == ""

    assert label(mountpoint) == label(mountpoint / "file") == PRIVATE
    assert audit.denials() == []


def test_relabel_declared(docker: Docker, hostprep: Hostprep, audit: Audit) -> None:
    """A declared label comes back when a container with a :Z ends, contents too."""
    mountpoint = docker.create("mongo", label="container_file_t:s0")
    assert docker.run("mongo:/data:Z", "echo written > /data/file") == ""
    assert re.search(rf"repaired mongo: label {CONTAINER_FILE}:c\S+ -> {CONTAINER_FILE}\n", hostprep.log())

    assert docker.run("mongo:/data", "cat /data/file; echo more >> /data/file") == "written"

    assert label(mountpoint) == label(mountpoint / "file") == CONTAINER_FILE
    assert audit.denials() == []


def test_relabel_shared(docker: Docker, hostprep: Hostprep, audit: Audit) -> None:
    """A :z takes the categories away that were declared: they come back when the container ends, contents too."""
    mountpoint = docker.create("mongo", label="container_file_t:s0:c1,c2")
    (mountpoint / "old").touch()
    assert docker.run("mongo:/data:z", "echo written > /data/file", LEVEL) == ""
    assert f"repaired mongo: label {CONTAINER_FILE} -> {PRIVATE}\n" in hostprep.log()

    assert docker.run("mongo:/data", "cat /data/file; echo more >> /data/file", LEVEL) == "written"

    assert {label(path) for path in (mountpoint, *mountpoint.rglob("*"))} == {PRIVATE}
    assert audit.denials() == []


def test_relabel_default(docker: Docker, hostprep: Hostprep) -> None:
    """Where no label was declared, the categories of a :Z stay, and are no drift."""
    mountpoint = docker.create("mongo")
    (mountpoint / "file").touch()
    assert docker.run("mongo:/data:Z", "echo written > /data/new") == ""
    private = label(mountpoint)
    assert private.startswith(f"{CONTAINER_FILE}:c")

    hostprep.mount("mongo")

    assert label(mountpoint) == private
    assert hostprep.status("mongo")["ready"] is True
