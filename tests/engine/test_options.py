"""What `docker volume create` tells the user who writes an option wrong; nothing may be left of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import Docker

pytestmark = pytest.mark.engine

# Options as written, and what the message has to say besides the first option's name.
# ALLOWED stands for the allowed prefix.
WRONG = {
    "uid-name": (["uid=mongodb"], ['"mongodb"', "name", "number"]),
    "uid-negative": (["uid=-1"], ['"-1"', "4294967294", "sign"]),
    "uid-plus": (["uid=+184"], ['"+184"', "sign"]),
    "uid-leading-zero": (["uid=0184"], ['"0184"', "leading zero"]),
    "uid-space": (["uid= 184"], ['" 184"', "space"]),
    "uid-fraction": (["uid=1.5"], ['"1.5"', "4294967294"]),
    "uid-hexadecimal": (["uid=0x10"], ['"0x10"', "digits"]),
    "uid-other-digits": (["uid=١٨٤"], ["digits"]),
    "uid-minus-one-unsigned": (["uid=4294967295"], ['"4294967295"', "4294967294"]),
    "uid-huge": (["uid=99999999999999999999"], ["4294967294"]),
    "uid-and-gid": (["uid=184:998"], ['"184:998"', "4294967294"]),
    "uid-empty": (["uid="], ["empty"]),
    "gid-name": (["gid=mongodb"], ['"mongodb"', "name", "number"]),
    "gid-negative": (["gid=-1"], ['"-1"', "4294967294"]),
    "gid-empty": (["gid="], ["empty"]),
    "mode-no-zero": (["mode=750"], ['"750"', 'mode: "0750"']),
    "mode-four-no-zero": (["mode=2770"], ['"2770"', 'mode: "02770"']),
    "mode-yaml": (["mode=488"], ['"488"', 'mode: "0750"']),
    "mode-yaml-octal-digits": (["mode=511"], ['"511"', 'mode: "0777"']),
    "mode-not-octal": (["mode=0888"], ['"0888"', "octal"]),
    "mode-too-long": (["mode=007770"], ['"007770"', "07777"]),
    "mode-zero-alone": (["mode=0"], ['"0"', "leading zero"]),
    "mode-python": (["mode=0o750"], ['"0o750"', "octal"]),
    "mode-letters": (["mode=u=rwx,g=rx"], ["octal"]),
    "mode-empty": (["mode="], ["empty"]),
    "label-fields": (["label=system_u:object_r:container_file_t"], ["level", ":s0"]),
    "label-characters": (["label=container file"], ['"container file"', "container_file_t"]),
    "label-level": (["label=container_file_t:s0:x1"], ["type:level"]),
    "label-empty": (["label="], ["empty"]),
    "recurse-word": (["recurse=sometimes"], ['"sometimes"', "never", "mismatch", "always"]),
    "recurse-boolean": (["recurse=true"], ['"true"', "never", "mismatch", "always"]),
    "recurse-empty": (["recurse="], ["empty"]),
    "on_remove-word": (["on_remove=keep"], ['"keep"', "delete", "retain"]),
    "on_remove-nearly": (["on_remove=Retain"], ['"Retain"', "retain"]),
    "on_remove-path": (["on_remove=delete", "path=ALLOWED/new"], ["path", "never removes"]),
    "on_remove-empty": (["on_remove="], ["empty"]),
    "path-relative": (["path=srv/mongo"], ['"srv/mongo"', "absolute"]),
    "path-dots": (["path=ALLOWED/../new"], ["normalized", "/srv/new"]),
    "path-slash": (["path=ALLOWED/new/"], ["ALLOWED/new"]),
    "path-root": (["path=/"], ["root"]),
    "path-empty": (["path="], ["empty"]),
    "path-outside": (["path=/etc/mongo"], ["/etc/mongo", "HOSTPREP_ALLOW"]),
    "path-sibling": (["path=ALLOWED-other/new"], ["ALLOWED-other/new", "HOSTPREP_ALLOW"]),
    "path-prefix-itself": (["path=ALLOWED"], ["ALLOWED", "below"]),
    "path-no-parent": (["path=ALLOWED/none/new"], ["ALLOWED/none"]),
    "path-file": (["path=ALLOWED/file"], ["ALLOWED/file", "directory"]),
    "path-link": (["path=ALLOWED/link"], ["link"]),
    "path-below-link": (["path=ALLOWED/link/new"], ["link"]),
    "unknown-near": (["uuid=184"], ['"uuid"', "uid"]),
    "unknown-case": (["Mode=0750"], ['"Mode"', "mode"]),
    "unknown-far": (["size=10G"], ['"size"', "uid", "gid", "mode", "label", "path", "recurse", "on_remove"]),
    "two-of-three-right": (["gid=staff", "uid=184", "mode=0750"], ['"staff"', "name"]),
}


@pytest.fixture(scope="module", autouse=True)
def obstacles(allowed: Path) -> None:
    """A file and a symlink where a volume's directory might be."""
    (allowed / "file").touch()
    (allowed / "link").symlink_to("/etc")


def everything(top: Path) -> list[str]:
    return sorted(os.path.join(at, name) for at, dirs, files in os.walk(top) for name in (*dirs, *files))


@pytest.mark.parametrize(("options", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_option(
    docker: Docker, hostprep: Hostprep, allowed: Path, options: list[str], expected: list[str]
) -> None:
    """The message names the option, what was written and what to write; the host is as it was."""
    flags = [word.replace("ALLOWED", str(allowed)) for option in options for word in ("-o", option)]
    before = everything(hostprep.root), everything(allowed), everything(Path("/etc"))

    said = docker.fails("volume", "create", "-d", "hostprep", *flags, "mongo")

    assert options[0].split("=")[0] in said
    for part in expected:
        assert part.replace("ALLOWED", str(allowed)) in said
    assert docker.volumes() == []
    assert (everything(hostprep.root), everything(allowed), everything(Path("/etc"))) == before


def test_wrong_name(docker: Docker, hostprep: Hostprep) -> None:
    """A name that no file system could keep is refused with what a name may be."""
    before = everything(hostprep.root)

    said = docker.fails("volume", "create", "-d", "hostprep", "m" * 256)

    assert "255" in said
    assert everything(hostprep.root) == before


def test_wrong_option_of_run(docker: Docker) -> None:
    """docker run with a wrong option fails with the same message, and starts nothing."""
    mount = "type=volume,source=mongo,target=/data,volume-driver=hostprep,volume-opt=uid=mongodb"

    said = docker.fails("run", "--rm", "--mount", mount, "busybox", "true")

    assert '"mongodb"' in said
    assert docker.volumes() == []
    assert docker.containers() == []
