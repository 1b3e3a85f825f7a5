"""Who has a directory mounted, with real mounts in real namespaces, and where that cannot be told."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from hostprep.host import fds
from hostprep.host.uses import Uses, uses
from testbed.engine import with_the_capabilities_of_the_service
from tests.support.host import PYTHON, REPOSITORY, mounted
from tests.support.machines import on_a_machine

pytestmark = pytest.mark.root

BLIND: Final = ("setpriv", "--bounding-set=-sys_ptrace")
CHROOT: Final = "import os, sys; os.chroot(sys.argv[1]); os.chdir('/'); print('up', flush=True); sys.stdin.read()"
FIRST_THREAD_ENDS: Final = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("up", flush=True)
ctypes.CDLL(None).syscall({number}, 0)
"""
DETACHED_ROOT: Final = """
import ctypes, os, sys
if os.fork():
    root = os.open("/", os.O_PATH)
    os.chroot(sys.argv[1])
    os.fchdir(root)
    assert ctypes.CDLL(None).umount2(sys.argv[1][1:].encode(), 2) == 0
    print("up", flush=True)
sys.stdin.read()
"""
LOOK: Final = """
import json, os, sys
from hostprep.host.uses import uses
found = uses(os.open(sys.argv[1], os.O_RDONLY), sys.argv[1])
print(json.dumps({"found": [use.who for use in found.found], "doubt": found.doubt}))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a directory in it."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    return tmp_path / "data"


def found(data: Path, *formerly: tuple[str, str]) -> Uses:
    with fds.closing(os.open(data, os.O_RDONLY)) as fd:
        return uses(fd, str(data), formerly)


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    """A process that prints a line when it is ready, and then waits; its number."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        yield running.pid
        running.kill()


@contextlib.contextmanager
def container(data: Path, within: str = "", then: str = "echo up; exec cat") -> Iterator[int]:
    """A process in a mount namespace of its own that has *data*, or a directory in it, mounted at `here` beside it."""
    script = f"mount --bind {data}/{within} {data.parent}/here; {then}"
    with process("unshare", "-m", "sh", "-euc", script) as number:
        yield number


def test_nobody(data: Path) -> None:
    """What nobody uses is used by nobody, and there is no doubt about it."""
    assert found(data) == Uses(())


def test_a_container(data: Path) -> None:
    """A process in another mount namespace that has it mounted, or a directory in it, is found."""
    with container(data) as number:
        (use,) = found(data).found
        assert use.who == f"process {number} has it mounted at {data.parent}/here"
        assert use.within == "."
    with container(data, "sub"):
        (use,) = found(data).found
        assert (use.within, use.point) == ("sub", f"{data.parent}/here")


def test_above(data: Path) -> None:
    """Who has a directory above it mounted does not count: that is every host that has a disk."""
    with mounted("--bind", str(data.parent), str(data.parent / "here")):
        assert found(data).found == ()


def test_a_mount_on_it(data: Path) -> None:
    """What is mounted on it, or on something in it, is a use of it, in whatever mount namespace."""
    with mounted("-t", "tmpfs", "none", str(data / "sub")):
        assert {(use.who, use.within) for use in found(data).found} == {(f"{data}/sub is a mount point", "sub")}
    script = f"mount -t tmpfs none {data}; echo up; exec cat"
    with process("unshare", "-m", "sh", "-euc", script):
        assert {(use.who, use.within) for use in found(data).found} == {(f"{data} is a mount point", ".")}


def test_an_overlay(data: Path) -> None:
    """A lower directory of an overlay is in use, under its former name, too."""
    for name in ("other", "up:per", "work"):
        (data.parent / name).mkdir()
    upper = str(data.parent / "up:per").replace(":", "\\:")
    layers = f"lowerdir={data.parent}/other:{data}/sub,upperdir={upper},workdir={data.parent}/work"
    with mounted("-t", "overlay", "-o", layers, "none", str(data.parent / "here")):
        assert "it is in the overlay at " in found(data).found[0].who
        assert {use.within for use in found(data).found} == {"sub"}
        assert {use.within for use in found(data.parent / "up:per").found} == {"."}
        data.rename(data.parent / "trash")
        assert {use.within for use in found(data.parent / "trash", (str(data), "entry")).found} == {"entry/sub"}
        assert found(data.parent / "trash", (f"{data}a", "entry")).found == ()


def test_a_chroot_of_its_own(data: Path) -> None:
    """Of a namespace whose first process is in a chroot, another process tells what is mounted."""
    (data.parent / "jail").mkdir()
    jail = f'{PYTHON} -c "{CHROOT}" {data.parent}/jail'
    with container(data, then=f"{jail} & cat"):
        assert [use.who.partition(" has ")[2] for use in found(data).found] == [f"it mounted at {data.parent}/here"]
        assert found(data).doubt == ""


def test_one_whose_first_thread_has_ended(data: Path) -> None:
    """A process of which only other threads than the first still run is found."""
    code = FIRST_THREAD_ENDS.format(number={"x86_64": 60}.get(os.uname().machine, 93))  # exit(2) of one thread alone
    with container(data, then=f"exec {PYTHON} -c {shlex.quote(code)}") as number:
        end = time.monotonic() + 60
        while Path(f"/proc/{number}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < end
        assert [use.who for use in found(data).found] == [f"process {number} has it mounted at {data.parent}/here"]


def test_a_root_directory_that_was_detached(data: Path) -> None:
    """Of a namespace whose first process is in a mount that was detached, another process tells what is mounted."""
    jail = data.parent / "jail"
    jail.mkdir()
    then = f"mount --bind {jail} {jail}; exec {PYTHON} -c {shlex.quote(DETACHED_ROOT)} {jail}"
    with container(data, then=then):
        assert [use.who.partition(" has ")[2] for use in found(data).found] == [f"it mounted at {data.parent}/here"]
        assert found(data).doubt == ""


def seen(data: Path, *under: str, **machine: Any) -> dict[str, Any]:
    """What hostprep sees on a machine of its own, run by the command *under*."""
    answer = json.loads(on_a_machine(*under, PYTHON, "-c", LOOK, str(data), **machine))
    assert isinstance(answer, dict)
    return answer


def inside(data: Path, then: str = "echo up; exec cat") -> tuple[str, ...]:
    """The command of a container that has *data* mounted."""
    return ("unshare", "-m", "sh", "-euc", f"mount --bind {data} {data.parent}/here; {then}")


@pytest.mark.parametrize("jail", ["jail", "here/sub"], ids=["a directory", "a mount"])
def test_only_a_chroot(data: Path, jail: str) -> None:
    """Where the only process of a namespace is in a chroot, root finds what is mounted outside of that.

    The systemd service cannot, and says so.
    """
    (data.parent / "jail").mkdir()
    then = f"""
        mount --bind {data.parent}/here/sub {data.parent}/here/sub
        exec {PYTHON} -c "{CHROOT}" {data.parent}/{jail}
    """
    by_root = seen(data, beside=inside(data, then))
    assert f"has it mounted at {data.parent}/here" in str(by_root["found"])
    assert by_root["doubt"] == ""
    service = with_the_capabilities_of_the_service()
    assert "is in a chroot" in seen(data, *service, beside=inside(data, then))["doubt"]


def test_what_is_entered(data: Path) -> None:
    """It needs no file of the namespace that it enters to look: those are somebody else's."""
    then = f"""
        exec {PYTHON} -c "
import ctypes, os, sys
libc = ctypes.CDLL(None)
for each in ('/usr', '/root', '/home', '/lib', '/proc'):
    libc.mount(b'none', each.encode(), b'tmpfs', 0, None)
os.chroot('{data.parent}')
os.write(1, b'up\\n')
os.read(0, 1)
"
    """
    by_root = seen(data, beside=inside(data, then))
    assert f"has it mounted at {data.parent}/here" in str(by_root["found"])
    assert by_root["doubt"] == ""


def test_in_a_chroot(data: Path) -> None:
    """In a chroot that hides the mount that the directory is on, who uses it cannot be told."""
    (data.parent / "proc").mkdir()
    code = f"""
import os
from hostprep.host.uses import uses
fd = os.open("{data}", os.O_RDONLY)
uses(fd, "{data}")  # loads what it needs
os.chroot("{data.parent}")
print(uses(fd, "/data").doubt)
"""
    with mounted("--bind", "/proc", str(data.parent / "proc")):
        done = subprocess.run([PYTHON, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "runs in a chroot" in done.stdout, done.stderr


def test_outside_of_the_chroot(data: Path) -> None:
    """In a chroot that is a mount, what is mounted outside of it in the same namespace is found all the same."""
    prepare = f"""
        mount --rbind / {data.parent}/jail
        mount --bind {data.parent}/jail{data} {data.parent}/here
    """
    (data.parent / "jail").mkdir()
    found = seen(data, "chroot", str(data.parent / "jail"), prepare=prepare)
    assert f"it is mounted at {data.parent}/here" in found["found"]
    assert found["doubt"] == ""


@pytest.mark.parametrize(
    ("kind", "expected"), [("docker", "pid namespace of its own"), ("lxc", ""), ("systemd-nspawn", "")]
)
def test_a_pid_namespace(data: Path, kind: str, expected: str) -> None:
    """In a pid namespace other processes may be hidden; not where a whole system runs in it, engines and all."""
    doubt = seen(data, kind=kind)["doubt"]
    assert expected in doubt
    assert bool(doubt) == bool(expected)


@pytest.mark.parametrize(("hidden", "expected"), [("2", "hides processes"), ("1", "cannot be seen")])
def test_hidepid(data: Path, hidden: str, expected: str) -> None:
    """Where /proc hides processes from whoever has no CAP_SYS_PTRACE, that is a doubt."""
    prepare = f"mount -t proc -o hidepid={hidden},gid=4 proc /proc"  # root is in group 0, the default
    assert expected in seen(data, *BLIND, prepare=prepare)["doubt"]
    assert seen(data, prepare=prepare)["doubt"] == ""


def test_without_ptrace(data: Path) -> None:
    """Without CAP_SYS_PTRACE containers are found; but any other namespace may have a chroot, and is a doubt."""
    assert seen(data, *BLIND) == {"found": [], "doubt": ""}
    with_container = seen(data, *BLIND, beside=inside(data))
    assert "is in a chroot, or may be" in with_container["doubt"]
    assert [who.partition(" has ")[2] for who in with_container["found"]] == [f"it mounted at {data.parent}/here"]
    jail = data.parent / "jail"
    jail.mkdir()
    then = f"""
        mount -t tmpfs none {jail}
        mkdir {jail}/proc {jail}/dev
        mount -t proc proc {jail}/proc
        mount --bind /dev {jail}/dev
        exec {PYTHON} -c "{CHROOT}" {jail}
    """
    assert "is in a chroot" in seen(data, *BLIND, beside=inside(data, then))["doubt"]
    assert "is in a chroot" in seen(data, *BLIND, beside=(PYTHON, "-c", CHROOT, str(data)))["doubt"]
    assert seen(data, beside=(PYTHON, "-c", CHROOT, str(data))) == {"found": [], "doubt": ""}


def test_one_that_runs_away(data: Path) -> None:
    """A container whose processes each start another and end is found, or is a doubt."""
    run = "import os; print('up', flush=True)\nfor _ in range(100000):\n    if os.fork(): os._exit(0)"
    once = seen(data, beside=inside(data, f'exec {PYTHON} -c "{run}"'))
    assert once["found"] or once["doubt"]
