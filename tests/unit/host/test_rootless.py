"""hostprep of a user who is not root: which numbers it has, whom it trusts, and what its process outside tells it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.images import libraries
from tests.support.host import PYTHON, Host, Server, children_of, eventually, owner
from tests.support.rootless import COUNT, UID, User, lacking, on_host

pytestmark = pytest.mark.root
BOB = UID + 1
"""Another user."""
CHROOT = 'mkdir "$1/jail"; mount --rbind / "$1/jail"; jail=$1/jail; shift; exec chroot "$jail" "$@"'
"""In a chroot nobody may make a user namespace (user_namespaces(7))."""


@pytest.fixture
def user() -> Iterator[User]:
    if missing := lacking():
        pytest.skip(missing)
    directory = Path(tempfile.mkdtemp(prefix="hostprep-user-", dir="/var/lib"))
    try:
        directory.chmod(0o755)
        yield User(directory)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def serving(user: User, **variables: str) -> Iterator[Server]:
    """The user's server. *process* is the first of its own: what the shells before it were, it is now."""
    argv = user.hostprep("serve", **variables)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    server = Server(process, user.socket)
    try:
        server.wait()
        yield server
    finally:
        process.kill()
        server.ended()
        assert process.stderr is not None
        process.stderr.close()


def outside(server: Server) -> int:
    """The server's process that stayed outside: it still runs in this namespace, and is the user."""
    here = os.readlink("/proc/self/ns/user")
    (found,) = (pid for pid in children_of(server.process.pid) if os.readlink(f"/proc/{pid}/ns/user") == here)
    return found


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [(0, 0), (184, 998), (1500, 1500), (COUNT, COUNT)])
def test_numbers(user: User, ids: tuple[int, int]) -> None:
    """0 is the user, and what follows are the user's ranges, one after the other as the file has them."""
    done = user.runs("create", "mongo", "-o", f"uid={ids[0]}", "-o", f"gid={ids[1]}")

    assert done.returncode == 0, done.stderr
    assert owner(user.root / "volumes/mongo/_data") == on_host(*ids)
    status = json.loads(user.runs("status", "mongo", "--json").stdout)["status"]
    assert (status["uid"], status["gid"], status["ready"]) == (*ids, True)
    assert owner(user.root / "volumes/mongo/volume.json") == (UID, UID)


@pytest.mark.parametrize(
    "command",
    [("create", "new"), ("apply", "mongo"), ("prepare", "made")],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("option", ["uid", "gid"])
def test_numbers_beyond_the_ranges(user: User, command: tuple[str, str], option: str) -> None:
    """A number that no container of the user's can have is refused in words, and leaves everything as it was."""
    user.runs("create", "mongo")
    verb, what = command
    what = str(user.home / what) if verb == "prepare" else what

    done = user.runs(verb, what, "-o", f"{option}={COUNT + 1}")

    assert done.returncode == 1
    assert f"{COUNT + 1} is no number of this user's containers, which have 0 to {COUNT}" in done.stderr
    assert os.listdir(user.root / "volumes") == ["mongo"]
    assert json.loads((user.root / "volumes/mongo/volume.json").read_text())["options"] == {}
    assert not (user.home / "made").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("userns=auto",), ""),
        (("userns=host",), ""),
        (("userns=anna",), "containers of a user's engine have the ids of the user's own namespace"),
        (("uid=1", "host_uid=2"), "a user's hostprep makes no mounts"),
    ],
)
@pytest.mark.parametrize("command", [("create", "new"), ("apply", "mongo")], ids=lambda command: command[0])
def test_other_namespaces(user: User, command: tuple[str, str], options: tuple[str, ...], said: str) -> None:
    """Whose numbers are meant is known: what says so is taken, and any other namespace or map refused in words."""
    user.runs("create", "mongo")
    done = user.runs(*command, *(f"-o{option}" for option in options))
    assert (done.returncode == 0, said in done.stderr) == (not said, True)
    made = json.loads((user.root / "volumes/mongo/volume.json").read_text())
    assert "userns" not in made
    assert os.listdir(user.root / "volumes").count("new") == (not said and command[0] == "create")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("rm /etc/subuid", "/etc/subuid has no range of ids for anna"),
        ("echo anna:1000:x > /etc/subgid", "/etc/subgid has no range of ids for anna"),
        ("mount --bind /dev/null /usr/bin/newuidmap", "newuidmap: Permission denied (install the package uidmap"),
        ("echo anna:1:65536 > /etc/subuid; echo anna:2:1 >> /etc/subuid", "newuidmap: "),
        (CHROOT, "this user can make no user namespace: Operation not permitted (see docs/rootless.md)"),
    ],
)
def test_no_namespace(user: User, prepare: str, said: str) -> None:
    """Where the user cannot have a namespace, or not these numbers, one line says why, and nothing is made."""
    done = user.runs("create", "mongo", prepare=prepare)

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert not user.root.exists()


def test_no_hostprep_of_his_own(user: User) -> None:
    """A user who has not installed one is told to use sudo, as ever: no volume is made where no engine looks."""
    (user.home / ".config/hostprep/hostprep.env").unlink()

    done = user.runs("create", "mongo")

    assert done.returncode == 1
    assert "hostprep needs to be root (it gives directories to other users; use sudo, or" in done.stderr
    assert not user.root.exists()


def test_settings(user: User) -> None:
    """The user's file is read, not root's; the environment goes before it, and it before the user's defaults."""
    file = user.home / ".config/hostprep/hostprep.env"
    file.write_text(f"HOSTPREP_ROOT={user.home}/elsewhere\nHOSTPREP_TRASH_KEEP=soon\n")

    assert 'HOSTPREP_TRASH_KEEP="soon"' in user.runs("ls").stderr
    assert user.runs("create", "mongo", HOSTPREP_TRASH_KEEP="1h").returncode == 0
    assert (user.home / "elsewhere/volumes/mongo/_data").is_dir()
    assert os.listdir(user.home / ".config/hostprep/roots")


# -- trust ---------------------------------------------------------------------------------------------------------

ABOVE = {
    "root's": (0, 0o755, True),
    "root's, sticky": (0, 0o1777, True),
    "the user's": (UID, 0o700, True),
    "the user's, open to the group": (UID, 0o770, False),
    "root's, open to all": (0, 0o777, False),
    "root's, open to a group": (0, 0o775, False),
    "another user's": (BOB, 0o755, False),
    "another user's, sticky": (BOB, 0o1777, False),
    "a container's": (on_host(184, 998)[0], 0o755, False),
    "a container's nobody's": (on_host(65534, 998)[0], 0o755, False),
    "nobody's": (65534, 0o755, False),
}


@pytest.fixture(params=ABOVE)
def above(request: pytest.FixtureRequest, user: User) -> tuple[Path, bool]:
    """A directory in which the user has one named `own`, and whether nobody else can put another in its place."""
    who, mode, trusted = ABOVE[request.param]
    place = user.directory / "above"
    (place / "own").mkdir(parents=True)
    os.chown(place / "own", UID, UID)
    os.chown(place, who, who)
    place.chmod(mode)
    return place / "own", trusted


def test_trust_in_the_root(user: User, above: tuple[Path, bool]) -> None:
    """The root is refused where somebody but the user and the real root could redirect the way to it.

    Within the namespace all three of nobody's, another user's and the real root's directories show as 65534's.
    """
    own, trusted = above

    done = user.runs("create", "mongo", HOSTPREP_ROOT=f"{own}/root")

    assert done.returncode == (0 if trusted else 1), done.stderr
    assert os.listdir(own) == (["root"] if trusted else [])
    if not trusted:
        assert f"somebody other than root could put another directory in the place of {own}" in done.stderr
        assert "must be root's or yours, and writable by nobody else" in done.stderr


def test_trust_in_a_path(user: User, above: tuple[Path, bool]) -> None:
    """A `path` that somebody else could redirect is refused: the engine would open what they put there, as the user."""
    own, trusted = above
    flags = ("create", "mongo", "-o", f"path={own}/data")

    done = user.runs(*flags, HOSTPREP_ALLOW=str(own))

    assert done.returncode == (0 if trusted else 1), done.stderr
    assert os.listdir(own) == (["data"] if trusted else [])
    if trusted:
        found = json.loads(user.runs("status", "mongo", "--json", HOSTPREP_ALLOW=str(own)).stdout)
        assert found["mountpoint"] == f"{own}/data"
    else:
        assert "hostprep cannot hold it with a mount" in done.stderr
        assert "CAP_SYS_ADMIN" not in done.stderr


@pytest.mark.parametrize("above", ["root's", "root's, open to all", "another user's"], indirect=True)
def test_trust_in_links(user: User, above: tuple[Path, bool]) -> None:
    """HOSTPREP_ROOT may go by a link where only the user and the real root could change it."""
    own, trusted = above
    link = own.parent / "link"
    link.symlink_to(user.home)
    os.chown(link, UID, UID, follow_symlinks=False)

    done = user.runs("create", "mongo", HOSTPREP_ROOT=f"{link}/root")

    assert done.returncode == (0 if trusted else 1), done.stderr
    assert (user.home / "root").exists() == trusted


def test_in_a_namespace_of_somebody_else(user: User) -> None:
    """In `podman unshare` and the like nobody outside can be asked: hostprep says so, and makes nothing."""
    unshare = ("unshare", "--map-root-user", "--map-auto")

    done = user.runs("create", "mongo", before=unshare, HOSTPREP_ROOT=str(user.root))

    assert done.returncode == 1
    assert "who owns what cannot be told in this user namespace: start hostprep outside of it" in done.stderr
    assert not user.root.exists()


def test_only_a_namespace_inherits(host: Host, tmp_path: Path) -> None:
    """Root's own hostprep asks nobody whom the environment names: in it, 65534 is a user like any other."""
    place = tmp_path / "above"
    place.mkdir()
    os.chown(place, 65534, 65534)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.set_inheritable(True)
        done = subprocess.run(
            [PYTHON, "-m", "hostprep", "create", "mongo"],
            env=host.process_environ({"HOSTPREP_ROOT": f"{place}/root", "_HOSTPREP_OUTSIDE": str(theirs.fileno())}),
            pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "somebody other than root could put another directory in the place of" in done.stderr


# -- the process outside -------------------------------------------------------------------------------------------


def test_process_outside(user: User) -> None:
    """It is the user, holds nothing of the server's, and ends with it, however that ends."""
    with serving(user) as server:
        pid = outside(server)
        assert os.stat(f"/proc/{pid}").st_uid == UID
        held = {os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
        assert held == {"/dev/null", "socket"}
        assert len(os.listdir(f"/proc/{pid}/fd")) == 4
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
        eventually(lambda: not _runs(pid), "the process outside ends")


def _runs(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def test_process_outside_ends(user: User) -> None:
    """Without it volumes are served; what only it could tell is answered with doubt."""
    with serving(user) as server:
        assert server("Create", Name="mongo", Opts={"uid": "184"}).status == 200
        os.kill(outside(server), signal.SIGKILL)
        assert server("Mount", Name="mongo", ID="c" * 64).status == 200
        assert server("Get", Name="mongo").body["Volume"]["Status"]["ready"]


def test_purge_by_the_server(user: User) -> None:
    """What is due is purged by the server's own process, which asks outside what is mounted."""
    with serving(user, HOSTPREP_TRASH_KEEP="0") as server:
        assert server("Create", Name="mongo", Opts={"uid": "184"}).status == 200
        assert server("Remove", Name="mongo").status == 200
        eventually(lambda: os.listdir(user.root / "trash") == [], "the volume is purged")


def test_only_a_chroot(user: User) -> None:
    """While a namespace of the user's has only a process in a chroot, nobody can tell what is mounted: nothing goes."""
    user.runs("create", "mongo", "-o", "uid=184")
    busybox, jail = shutil.which("busybox"), user.home / "jail"
    if busybox is None:
        pytest.skip("busybox is not installed (package busybox-static)")
    for path, to in {busybox: jail / "busybox", **{path: jail / path[1:] for path in libraries(busybox)}}.items():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    user.owns(jail)
    script = 'mount --bind "$0" "$1/run"; exec chroot "$1/home/jail" /busybox sh -c "echo up; read -r _"'
    places = (str(user.root / "volumes/mongo/_data"), str(user.directory))
    argv = user.become("unshare", "--map-root-user", "--mount", "sh", "-euc", script, *places)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "up\n"
        user.runs("rm", "--force", "mongo")
        assert "is in a chroot, or may be, so hostprep cannot see" in user.runs("purge", "--all").stderr
        assert len(os.listdir(user.root / "trash")) == 1
        held.communicate("\n")
    assert user.runs("purge", "--all").returncode == 0


def test_mounts_of_roots(user: User) -> None:
    """What root has mounted, in a namespace that the user may not enter, keeps a volume from its purge."""
    user.runs("create", "mongo", "-o", "uid=184")
    place = user.directory / "place"
    place.mkdir()
    script = 'mount --bind "$0" "$1" && echo up && read -r _'
    argv = ["unshare", "--mount", "sh", "-c", script, str(user.root / "volumes/mongo/_data"), str(place)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "up\n"
        assert "has it mounted at" in user.runs("rm", "mongo").stderr
        user.runs("rm", "--force", "mongo")
        assert "has it mounted at" in user.runs("purge", "--all").stderr
        held.communicate("\n")
    assert user.runs("purge", "--all").returncode == 0
