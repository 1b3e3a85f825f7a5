"""The managed plugin where SELinux enforces: no selinuxfs in it, and labels all the same."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .guest import CONTAINER_FILE, OWNED, TOP, Audit, Docker, checked, label, set_label

NAME = "managed"
ROOT = Path("/var/lib/hostprep")


class Managed(Docker):
    """The docker client, with the managed plugin as its driver."""

    def create(self, name: str, **options: str) -> Path:
        flags = [f"--opt={key}={value}" for key, value in {**OWNED, **options}.items()]
        self("volume", "create", "-d", NAME, *flags, name)
        return ROOT / "volumes" / name / "_data"

    def status(self, name: str) -> str:
        """Status as `docker volume inspect` has it."""
        return self("volume", "inspect", "-f", "{{json .Status}}", name)

    def root(self) -> Path:
        """What the server in the plugin has as its root directory."""
        wanted = b"/usr/bin/python3\0-I\0/usr/bin/hostprep\0serve\0"
        (process,) = (path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if path.read_bytes() == wanted)
        return process / "root"


@pytest.fixture(scope="module")
def plugin(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    """The plugin that `make plugin` makes, on the directory that the service of the other tests has, too."""
    docker, directory = Managed(), tmp_path_factory.mktemp("plugin")
    ROOT.mkdir(mode=0o700, exist_ok=True)
    checked("tar", "-xf", str(TOP.parent / "plugin.tar"), "-C", str(directory))
    subprocess.run(["docker", "plugin", "create", NAME, directory], check=True, timeout=900)
    shutil.rmtree(directory)
    docker("plugin", "enable", NAME)
    yield docker
    docker("plugin", "rm", "-f", NAME)


@pytest.fixture
def docker(plugin: Managed) -> Iterator[Managed]:
    """The docker client. After the test all containers and volumes go."""
    yield plugin
    plugin.remove_everything()


def test_labels(docker: Managed, audit: Audit) -> None:
    """A volume has the label of container files, and a confined container writes to it; nothing is denied."""
    assert not (docker.root() / "sys/fs/selinux/enforce").exists()

    directory = docker.create("mongo")

    assert label(directory) == CONTAINER_FILE
    assert docker.run(
        "mongo:/data", "echo written > /data/file; cat /data/file; cat /proc/self/attr/current"
    ).startswith("written\nsystem_u:system_r:container_t:")
    assert label(directory / "file") == CONTAINER_FILE
    assert audit.denials() == []


def test_spellings(docker: Managed) -> None:
    """An alias, and categories in another order, are the same label: nothing is adrift, and the policy's is shown."""
    directory = docker.create("spelled", label="svirt_sandbox_file_t:s0:c9,c3")  # of no volume before: that would warn

    assert label(directory) == f"{CONTAINER_FILE}:c3,c9"
    status = docker.status("spelled")
    assert f'"label":"{CONTAINER_FILE}:c3,c9"' in status
    assert '"drift":[]' in status
    assert '"warnings":[]' in status


def test_command(docker: Managed) -> None:
    """The command in the plugin knows labels in the same way."""
    docker.create("mongo")
    process = docker.root().parent.name

    shown = checked("nsenter", "--target", process, "--all", "hostprep", "ls", "--json")

    (volume,) = json.loads(shown)
    assert (volume["name"], volume["status"]["label"], volume["status"]["ready"]) == ("mongo", CONTAINER_FILE, True)


@pytest.mark.parametrize("text", ["contaner_file_t", "container_file_t:s0:c5000"])
def test_unknown(docker: Managed, text: str) -> None:
    """A label that the policy does not know is refused, in words, and nothing is made."""
    said = docker.fails("volume", "create", "-d", NAME, "-o", f"label={text}", "mongo")

    assert f'the policy of this host does not know "system_u:object_r:{text.removesuffix(":s0")}' in said
    assert list((ROOT / "volumes").iterdir()) == []


def test_another_type(docker: Managed) -> None:
    """A label of another type is set as asked, with a warning that names the one that containers can use."""
    directory = docker.create("mongo", label="usr_t")

    assert label(directory) == "system_u:object_r:usr_t:s0"
    assert f"cannot be told within the managed plugin: usable is {CONTAINER_FILE}" in docker.status("mongo")


def test_recurse(docker: Managed) -> None:
    """A tree whose root lost its label is labelled anew, all of it, at the next start of a container."""
    directory = docker.create("mongo")
    docker.run("mongo:/data", "mkdir -p /data/a/b; touch /data/a/b/file")
    for path in (directory, directory / "a", directory / "a/b", directory / "a/b/file"):
        set_label(path, "system_u:object_r:user_home_t:s0")

    assert docker.run("mongo:/data", "echo written > /data/a/b/file; cat /data/a/b/file") == "written"

    assert {label(path) for path in (directory, *directory.rglob("*"))} == {CONTAINER_FILE}


def test_files_that_follow(docker: Managed) -> None:
    """What the kernel is asked leaves no trace: what hostprep makes afterwards has no label of a volume."""
    with contextlib.ExitStack() as stack:
        for number in range(3):
            stack.callback(docker, "volume", "rm", f"many{number}")
            docker.create(f"many{number}", label=f"svirt_sandbox_file_t:s0:c{number}")
    records = [label(path) for path in (ROOT / "trash").rglob("volume.json")]
    assert records
    assert not any("container_file_t" in record for record in records)
