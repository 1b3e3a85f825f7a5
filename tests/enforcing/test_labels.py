"""The label option against a policy in force: what is refused, what is the same, whence defaults come."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .guest import CONTAINER_FILE, Docker, Hostprep, checked, label, set_label

CONTEXTS = Path("/etc/selinux/default/contexts/lxc_contexts")


def ask(expression: str, python: str = sys.executable) -> str:
    """The value of an expression, in a process of its own: libselinux keeps what it once read."""
    return checked(python, "-c", f"from hostprep.host.labels import *; print({expression})")


def test_unknown_label(docker: Docker, hostprep: Hostprep) -> None:
    """A label that the policy does not know is refused at Create, in words, and nothing is made."""
    said = docker.fails("volume", "create", "-d", "hostprep", "-o", "label=contaner_file_t", "mongo")

    assert 'the policy of this host does not know "system_u:object_r:contaner_file_t:s0"' in said
    assert CONTAINER_FILE in said
    assert docker("volume", "ls", "-q") == ""


def test_unknown_category(hostprep: Hostprep) -> None:
    """A category that the policy does not have is refused as well."""
    opts = {"label": "container_file_t:s0:c5000"}
    assert "does not know" in hostprep.ask("/VolumeDriver.Create", {"Name": "mongo", "Opts": opts})["Err"]


@pytest.mark.parametrize(
    ("option", "canonical"),
    [
        ("svirt_sandbox_file_t", CONTAINER_FILE),
        ("docker_var_lib_t", "system_u:object_r:container_var_lib_t:s0"),
        ("container_file_t:s0:c9,c3", f"{CONTAINER_FILE}:c3,c9"),
        ("svirt_sandbox_file_t:s0:c1,c0", f"{CONTAINER_FILE}:c0,c1"),
    ],
)
def test_other_spellings(docker: Docker, hostprep: Hostprep, option: str, canonical: str) -> None:
    """An alias and another order of categories are the same label: nothing to repair, nothing adrift."""
    directory = hostprep.create("mongo", label=option)
    before = len(hostprep.log())

    hostprep.mount("mongo")
    hostprep.mount("mongo")

    assert label(directory) == canonical
    status = hostprep.status("mongo")
    assert (status["ready"], status["drift"], status["label"]) == (True, [], canonical)
    assert not re.search("repaired|pass over", hostprep.log()[before:])


def test_usable(docker: Docker, hostprep: Hostprep, srv: Path) -> None:
    """The log names the usable label, at the same level; an adopted directory's own label counts too."""
    hostprep.create("mongo", label="usr_t:s0:c1,c2")
    (srv / "adopted").mkdir()
    hostprep.create("adopted", path=str(srv / "adopted"))

    said = "no container write system_u:object_r:usr_t:s0:c1,c2: usable is " + CONTAINER_FILE + ":c1,c2\n"
    assert f"create of mongo: the policy of this host lets {said}" in hostprep.log()
    (warning,) = hostprep.status("adopted")["warnings"]
    assert re.search(r"no container .*write .*:var_t:s0: usable is ", warning)


def test_drift(docker: Docker, hostprep: Hostprep) -> None:
    """A label that is adrift is told in Status, with both, and mended by the next Mount."""
    directory = hostprep.create("mongo")
    set_label(directory, "system_u:object_r:user_home_t:s0")
    drift = hostprep.status("mongo")["drift"]

    hostprep.mount("mongo")

    assert drift == [f"label is system_u:object_r:user_home_t:s0, declared {CONTAINER_FILE}"]
    assert label(directory) == CONTAINER_FILE


@pytest.fixture
def other_contexts() -> Iterator[None]:
    """A policy whose container files are of another type."""
    before = CONTEXTS.read_text()
    CONTEXTS.write_text(before.replace("container_file_t", "container_ro_file_t"))
    yield
    CONTEXTS.write_text(before)


@pytest.mark.usefixtures("other_contexts")
def test_default_from_policy() -> None:
    """The label of a volume without one is the policy's own for container files, whichever that is."""
    assert ask("Labels.open(SELinux.AUTO).default") == "system_u:object_r:container_ro_file_t:s0"


def test_required() -> None:
    """HOSTPREP_SELINUX=required is content with this kernel."""
    assert ask("Labels.open(SELinux.REQUIRED).applied") == "True"


def test_force(hostprep: Hostprep) -> None:
    """HOSTPREP_SELINUX=force is for kernels without SELinux, and refused on this one."""
    done = hostprep.command("ls", HOSTPREP_SELINUX="force")

    assert (done.returncode, "this one has it on" in done.stderr) == (1, True)


def test_off(hostprep: Hostprep) -> None:
    """With HOSTPREP_SELINUX=off no label is set, and Status says that a declared one is not applied."""
    environ = {"HOSTPREP_SELINUX": "off", "HOSTPREP_ROOT": "/var/lib/hostprep-off"}
    assert hostprep.command("create", "mongo", "-o", "label=usr_t", **environ).returncode == 0

    shown = hostprep.command("status", "mongo", **environ).stdout

    assert ":var_lib_t:" in label(Path("/var/lib/hostprep-off/volumes/mongo/_data"))
    assert "recorded but not applied" in shown


@pytest.mark.parametrize("shim", ["", "def is_selinux_enabled(): return 0\n"], ids=["nothing", "the shim"])
def test_virtual_environment(tmp_path: Path, shim: str) -> None:
    """In a virtual environment, also one with PyPI's shim that says no, the real binding is found."""
    checked(sys.executable, "-m", "venv", "--without-pip", str(tmp_path))
    if shim:
        (package,) = tmp_path.glob("lib/python*/site-packages")
        (package / "selinux.py").write_text(shim)

    assert ask("Labels.open(SELinux.AUTO).default", python=str(tmp_path / "bin/python")) == CONTAINER_FILE


def test_no_binding(hostprep: Hostprep) -> None:
    """Where no binding can be used, hostprep does not start, and names the package to install."""
    binding = Path("/usr/lib/python3/dist-packages/selinux")
    binding.rename(f"{binding}.away")
    try:
        done = hostprep.command("serve")
    finally:
        Path(f"{binding}.away").rename(binding)

    assert done.returncode == 1
    assert re.fullmatch("hostprep: SELinux is on in this kernel, but .*python3-selinux.*\n", done.stderr)


@pytest.fixture
def vfat(srv: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system that keeps no labels."""
    image, where = tmp_path / "image", srv / "vfat"
    image.write_bytes(bytes(1 << 20))
    where.mkdir()
    set_label(image, "system_u:object_r:fsadm_tmp_t:s0")
    checked("mkfs.vfat", str(image))
    checked("mount", "-o", "loop", str(image), str(where))
    yield where
    checked("umount", str(where))


def test_no_labels(docker: Docker, hostprep: Hostprep, vfat: Path) -> None:
    """Where the file system keeps no labels Create and Mount succeed, and Status says so."""
    hostprep.create("mongo", path=str(vfat / "data"), label="container_file_t")
    hostprep.mount("mongo")

    status = hostprep.status("mongo")
    assert status["ready"] is True
    assert [warning for warning in status["warnings"] if "keeps no labels" in warning]
    assert hostprep.log().count("keeps no labels") == 1


def test_lasting(docker: Docker, hostprep: Hostprep) -> None:
    """The installation has made the rule by which a relabelling of the whole host leaves the volumes as they are."""
    directory = hostprep.create("mongo")
    (directory / "file").touch()

    checked("restorecon", "-R", "-F", "/var/lib/hostprep")

    assert label(directory) == label(directory / "file") == CONTAINER_FILE
    assert ":var_lib_t:" in label(directory / "../volume.json")
