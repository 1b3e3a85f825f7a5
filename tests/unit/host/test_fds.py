"""Opening, reading and replacing, by descriptor and one component at a time."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostprep.errors import NotAllowed, Unreadable
from hostprep.host import fds, linux
from hostprep.host.fds import closing
from tests.support.host import mode, mounted
from tests.support.trees import make_tree
from tests.support.users import has_list, set_list

pytestmark = pytest.mark.root


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the test's own directory."""
    with closing(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        yield fd


@pytest.fixture(params=["openat2", "before Linux 5.6"])
def either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the system call openat2."""
    if request.param != "openat2":
        monkeypatch.setattr(linux, "SYS_OPENAT2", 100_000)  # no kernel knows it: ENOSYS
    return str(request.param)


class TestComponents:
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "/etc", "a/", "../x", "a\0b"])
    @pytest.mark.parametrize("call", ["open_dir", "open_below", "make_dir", "exists", "read_file", "write_file"])
    def test_a_name_is_one_component(self, here: int, call: str, name: str) -> None:
        """Whatever is opened by name is one component below the descriptor."""
        calls: dict[str, Callable[[], object]] = {
            "open_dir": lambda: fds.open_dir(here, name),
            "open_below": lambda: fds.open_below(here, name, directory=False),
            "make_dir": lambda: fds.make_dir(here, name),
            "exists": lambda: fds.exists(here, name),
            "read_file": lambda: fds.read_file(here, name, limit=1),
            "write_file": lambda: fds.write_file(here, name, b"", durable=False),
        }
        with pytest.raises(ValueError, match="not one path component"):
            calls[call]()

    @pytest.mark.parametrize("name", ["a", "..a", "a..", "...", " ", "\n"])
    def test_odd_names_are_components(self, name: str) -> None:
        """A name may hold dots, spaces and line ends."""
        assert fds.component(name) == name


class TestOpenDir:
    def test_a_symlink(self, here: int, tmp_path: Path) -> None:
        """A symlink is not followed, to a directory either."""
        (tmp_path / "link").symlink_to("/etc")
        with pytest.raises(NotADirectoryError):
            fds.open_dir(here, "link")

    def test_a_new_directory_is_closed_to_others(self, here: int, tmp_path: Path) -> None:
        """A directory is made 0700, and given its mode by the caller."""
        with closing(fds.make_dir(here, "new")) as fd:
            assert os.fstat(fd).st_ino == (tmp_path / "new").stat().st_ino
        assert mode(tmp_path / "new") == "0700"

    def test_a_name_that_is_taken(self, here: int, tmp_path: Path) -> None:
        """A directory is only made where nothing has the name, a dangling symlink neither."""
        (tmp_path / "new").symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            fds.make_dir(here, "new")


@pytest.mark.usefixtures("either_kernel")
class TestOpenBelow:
    def test_a_directory(self, here: int, tmp_path: Path) -> None:
        """A directory is opened for reading."""
        (tmp_path / "a" / "b").mkdir(parents=True)
        with closing(fds.open_below(here, "a", directory=True)) as fd:
            assert os.listdir(fd) == ["b"]

    @pytest.mark.parametrize("directory", [True, False])
    def test_a_symlink(self, here: int, tmp_path: Path, directory: bool) -> None:  # noqa: FBT001
        """A symlink is pinned as itself, and is no directory."""
        (tmp_path / "link").symlink_to("/etc")
        if directory:
            with pytest.raises(OSError, match="link") as caught:
                fds.open_below(here, "link", directory=True)
            assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
        else:
            with closing(fds.open_below(here, "link", directory=False)) as fd:
                assert stat.S_ISLNK(os.fstat(fd).st_mode)

    def test_a_fifo_is_not_opened(self, here: int, tmp_path: Path) -> None:
        """A FIFO is pinned without being opened: its other end notices nothing, and nobody waits."""
        os.mkfifo(tmp_path / "fifo")
        with closing(fds.open_below(here, "fifo", directory=False)):
            with pytest.raises(OSError, match="fifo") as caught:
                os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
            assert caught.value.errno == errno.ENXIO

    @pytest.mark.parametrize("kind", ["bind", "tmpfs"])
    def test_a_directory_mount(self, here: int, tmp_path: Path, kind: str) -> None:
        """A mount point is refused, a bind mount of the same file system too."""
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        arguments = ["--bind", str(tmp_path / "b")] if kind == "bind" else ["-t", "tmpfs", "none"]
        with mounted(*arguments, str(tmp_path / "a")), pytest.raises(OSError, match="a") as caught:
            fds.open_below(here, "a", directory=True)
        assert caught.value.errno == errno.EXDEV

    def test_a_file_mount(self, here: int, tmp_path: Path) -> None:
        """A file that is a bind mount is refused."""
        (tmp_path / "a").touch()
        (tmp_path / "b").touch()
        with mounted("--bind", str(tmp_path / "b"), str(tmp_path / "a")), pytest.raises(OSError, match="a") as caught:
            fds.open_below(here, "a", directory=False)
        assert caught.value.errno == errno.EXDEV

    def test_a_missing_name(self, here: int) -> None:
        """What is not there is ENOENT."""
        with pytest.raises(FileNotFoundError):
            fds.open_below(here, "a", directory=False)


def test_only_a_missing_openat2_is_got_round(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An errno other than ENOSYS from openat2 is an answer, not a reason to try without."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "no", "a")

    monkeypatch.setattr(linux, "openat2", refuse)
    with pytest.raises(PermissionError):
        fds.open_below(here, "a", directory=True)


class TestWalk:
    def test_a_plain_path(self, tmp_path: Path) -> None:
        """Every component is opened, and the last is what is returned."""
        (tmp_path / "a" / "b").mkdir(parents=True)
        with closing(fds.walk(f"{tmp_path}/a/b", trusted=True)) as fd:
            assert os.fstat(fd).st_ino == (tmp_path / "a" / "b").stat().st_ino

    @pytest.mark.parametrize("where", ["link/b", "a/link"], ids=["on-the-way", "at-the-end"])
    def test_a_symlink(self, tmp_path: Path, where: str) -> None:
        """A symlink anywhere is refused in words that name it."""
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "link").symlink_to("a")
        (tmp_path / "a" / "link").symlink_to("b")
        with pytest.raises(NotAllowed, match=r"/link is a symlink, not a directory \(.*symlinks are never followed"):
            fds.walk(f"{tmp_path}/{where}", trusted=False)

    def test_a_file(self, tmp_path: Path) -> None:
        """A file on the way is refused in words that name it."""
        (tmp_path / "file").touch()
        with pytest.raises(NotAllowed, match="/file is a file, not a directory"):
            fds.walk(f"{tmp_path}/file", trusted=False)

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        """The error names the first component that is not there."""
        with pytest.raises(FileNotFoundError) as caught:
            fds.walk(f"{tmp_path}/a/b/c", trusted=False)
        assert caught.value.filename == f"{tmp_path}/a"

    @pytest.mark.parametrize(
        ("owner", "bits", "below", "trusted"),
        [
            (0, 0o755, 0, True),
            (0, 0o1777, 0, True),
            (0, 0o1777, 1000, False),
            (0, 0o777, 0, False),
            (0, 0o775, 0, False),
            (0, 0o1775, 0, True),
            (1000, 0o755, 0, False),
            (0, 0o700, 1000, True),
        ],
        ids=[
            "roots-alone",
            "sticky-and-roots",
            "sticky-and-anothers",
            "writable-by-all",
            "writable-by-group",
            "sticky-group-and-roots",
            "anothers",
            "anothers-below-roots",
        ],
    )
    def test_who_could_swap_a_directory(self, tmp_path: Path, owner: int, bits: int, below: int, trusted: bool) -> None:  # noqa: FBT001
        """A path is trusted where only root could put another directory in the place of one of its components."""
        (tmp_path / "above" / "below").mkdir(parents=True)
        os.chown(tmp_path / "above" / "below", below, below)
        os.chown(tmp_path / "above", owner, owner)
        os.chmod(tmp_path / "above", bits)
        path = f"{tmp_path}/above/below"
        os.close(fds.walk(path, trusted=False))
        if trusted:
            os.close(fds.walk(path, trusted=True))
        else:
            with pytest.raises(NotAllowed, match="somebody other than root could put another directory in the place"):
                fds.walk(path, trusted=True)

    def test_what_could_be_swapped(self, tmp_path: Path) -> None:
        """A walk names the first directory that somebody other than root could replace, or none."""
        (tmp_path / "above" / "below" / "last").mkdir(parents=True)
        path = f"{tmp_path}/above/below/last"
        for bits, named in ((0o755, ""), (0o757, f"{tmp_path}/above/below")):
            os.chmod(tmp_path / "above", bits)
            os.chmod(tmp_path / "above" / "below", bits)
            fd, replaceable = fds.walk_and_tell(path)
            with closing(fd):
                assert os.path.samestat(os.fstat(fd), os.stat(path))
            assert replaceable == named


class TestResolve:
    LINKS = (
        "dir disk/data",
        "dir other",
        "symlink link disk",
        "symlink absolute HERE/disk",
        "symlink disk/up ../other",
        "symlink again link",
        "symlink dangling nowhere/x",
        "file file",
    )

    @pytest.mark.parametrize(
        ("path", "leads_to"),
        [
            ("disk/data", "disk/data"),
            ("link/data", "disk/data"),
            ("absolute/data", "disk/data"),
            ("again/data", "disk/data"),
            ("link/up", "other"),
            ("link/up/missing/x", "other/missing/x"),
            ("dangling", "nowhere/x"),
            ("missing/x", "missing/x"),
            ("file/x", "file/x"),
        ],
    )
    def test_as_the_kernel(self, tmp_path: Path, path: str, leads_to: str) -> None:
        """Links that only root can change are followed as the kernel follows them; what is missing stays as written."""
        make_tree(tmp_path, *(line.replace("HERE", str(tmp_path)) for line in self.LINKS))
        assert fds.resolve(f"{tmp_path}/{path}") == f"{tmp_path}/{leads_to}" == os.path.realpath(f"{tmp_path}/{path}")

    @pytest.mark.parametrize("path", ["home/link", "home/link/x", "link", "home/below/link"])
    @pytest.mark.parametrize(("owner", "bits"), [(1000, 0o755), (0, 0o777)], ids=["anothers", "writable-by-all"])
    def test_a_link_that_others_can_change(self, tmp_path: Path, path: str, owner: int, bits: int) -> None:
        """A link below a directory that is not root's alone is not followed, nor one of root's that leads over one."""
        make_tree(
            tmp_path, "dir home/below", "dir disk", "symlink link home/link", "symlink home/below/link ../../disk"
        )
        make_tree(tmp_path, "symlink home/link ../disk")
        os.chown(tmp_path / "home", owner, owner)
        os.chmod(tmp_path / "home", bits)
        with pytest.raises(NotAllowed, match="somebody other than root could change where it leads"):
            fds.resolve(f"{tmp_path}/{path}")

    @pytest.mark.parametrize(("link", "followed"), [(0, True), (1000, False)], ids=["roots", "anothers"])
    def test_a_link_in_a_sticky_directory(self, tmp_path: Path, link: int, followed: bool) -> None:  # noqa: FBT001
        """In a directory such as /tmp only links of root's are followed."""
        make_tree(tmp_path, "dir tmp 0:0 1777", "dir disk", f"symlink tmp/link ../disk {link}:{link}")
        if followed:
            assert fds.resolve(f"{tmp_path}/tmp/link") == f"{tmp_path}/disk"
        else:
            with pytest.raises(NotAllowed):
                fds.resolve(f"{tmp_path}/tmp/link")

    def test_no_end(self, tmp_path: Path) -> None:
        """A link that leads to itself is an error."""
        make_tree(tmp_path, "symlink loop loop")
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            fds.resolve(f"{tmp_path}/loop")


class TestMakeWay:
    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
    def test_modes(self, tmp_path: Path, umask: int) -> None:
        """What is missing is made, with the modes that were said, whatever the umask is."""
        before = os.umask(umask)
        try:
            fds.make_way(f"{tmp_path}/a/b/c", mode=0o750)
        finally:
            os.umask(before)
        assert [stat.S_IMODE(os.stat(tmp_path / path).st_mode) for path in ("a", "a/b", "a/b/c")] == [
            0o755,
            0o755,
            0o750,
        ]

    def test_below_a_directory_with_a_default_list(self, tmp_path: Path) -> None:
        """What is made inherits no access list, and hands none on."""
        set_list(tmp_path, "u::rwx", "u:1005:rwx", "g::r-x", "m::rwx", "o::---", default=True)
        fds.make_way(f"{tmp_path}/a/b", mode=0o700)
        assert [path for path in ("a", "a/b") if has_list(tmp_path / path)] == []
        assert [stat.S_IMODE(os.stat(tmp_path / path).st_mode) for path in ("a", "a/b")] == [0o755, 0o700]

    def test_what_is_there(self, tmp_path: Path) -> None:
        """A directory that is there stays as it is."""
        make_tree(tmp_path, "dir a 0:0 711")
        fds.make_way(f"{tmp_path}/a", mode=0o755)
        assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o711

    @pytest.mark.parametrize("above", ["home 1000:1000 755", "home 0:0 777", "home 0:0 775"])
    def test_where_others_can_write(self, tmp_path: Path, above: str) -> None:
        """Nothing is made where somebody other than root could put another directory in its place."""
        make_tree(tmp_path, f"dir {above}", "dir home/below")
        for path in ("home/a", "home/a/b", "home/below/a"):
            with pytest.raises(NotAllowed, match="somebody other than root"):
                fds.make_way(f"{tmp_path}/{path}", mode=0o700)
        assert (os.listdir(tmp_path / "home"), os.listdir(tmp_path / "home/below")) == (["below"], [])

    def test_in_a_sticky_directory(self, tmp_path: Path) -> None:
        """In a directory such as /tmp it is made: nobody can rename or remove what is root's there."""
        make_tree(tmp_path, "dir tmp 0:0 1777")
        fds.make_way(f"{tmp_path}/tmp/a/b", mode=0o700)
        assert os.listdir(tmp_path / "tmp/a") == ["b"]

    def test_a_link(self, tmp_path: Path) -> None:
        """Nothing is made through a symlink."""
        make_tree(tmp_path, "dir disk", "symlink link disk")
        with pytest.raises(NotAllowed, match="symlink"):
            fds.make_way(f"{tmp_path}/link/a", mode=0o700)
        assert os.listdir(tmp_path / "disk") == []


class TestHeld:
    @pytest.mark.parametrize(
        ("kind", "number"),
        [
            ("symlink link file", errno.ELOOP),
            ("dir dir", errno.EISDIR),
            ("fifo fifo", errno.EINVAL),
            ("device device", errno.EACCES),
            ("socket socket", errno.ENXIO),
        ],
    )
    def test_a_regular_file_and_nothing_else(self, tmp_path: Path, kind: str, number: int) -> None:
        """On a mount with nodev the kernel opens a regular file by HELD, and nothing else."""
        with mounted("-t", "tmpfs", "-o", "nodev", "none", str(tmp_path)):
            if kind.startswith("socket"):
                os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
            else:
                make_tree(tmp_path, kind)
            with pytest.raises(OSError, match=kind.split()[1]) as caught:
                os.open(tmp_path / kind.split()[1], fds.HELD)
        assert caught.value.errno == number

    def test_neither_read_nor_written(self, tmp_path: Path) -> None:
        """By a descriptor of HELD one can change owner and attributes, but neither read nor write."""
        make_tree(tmp_path, "file f 0:0 400 secret")
        with closing(os.open(tmp_path / "f", fds.HELD)) as fd:
            for call in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x"), lambda: os.truncate(fd, 0)):
                with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
                    call()
            os.fchown(fd, 184, 998)
            os.setxattr(fd, "security.selinux", b"x")
        assert (os.stat(tmp_path / "f").st_uid, os.stat(tmp_path / "f").st_gid) == (184, 998)
        assert (tmp_path / "f").read_text() == "secret"


class TestReadFile:
    def test_a_file(self, here: int, tmp_path: Path) -> None:
        """A regular file of root's is read whole."""
        make_tree(tmp_path, "file f 0:0 600 0123456789")
        assert fds.read_file(here, "f", limit=10) == b"0123456789"

    def test_a_long_file(self, here: int, tmp_path: Path) -> None:
        """A file over the limit is refused."""
        make_tree(tmp_path, "file f 0:0 600 0123456789")
        with pytest.raises(Unreadable, match="longer than 9 bytes"):
            fds.read_file(here, "f", limit=9)

    @pytest.mark.parametrize("kind", ["symlink", "hard-link", "fifo", "directory", "device"])
    def test_another_kind(self, here: int, tmp_path: Path, kind: str) -> None:
        """A symlink, a file with two names, a FIFO, a directory and a device are refused, without waiting."""
        (tmp_path / "other").write_bytes(b"{}")
        make: dict[str, Callable[[], object]] = {
            "symlink": lambda: (tmp_path / "f").symlink_to("other"),
            "hard-link": lambda: (tmp_path / "f").hardlink_to(tmp_path / "other"),
            "fifo": lambda: os.mkfifo(tmp_path / "f"),
            "directory": (tmp_path / "f").mkdir,
            "device": lambda: os.mknod(tmp_path / "f", stat.S_IFCHR | 0o600, os.makedev(1, 5)),
        }
        make[kind]()
        with pytest.raises(Unreadable):
            fds.read_file(here, "f", limit=10)

    def test_a_socket(self, here: int, tmp_path: Path) -> None:
        """A socket cannot be opened."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{here}/f")
            with pytest.raises(OSError, match="f"):
                fds.read_file(here, "f", limit=10)

    @pytest.mark.parametrize(
        ("owner", "bits"), [(1000, 0o600), (0, 0o620), (0, 0o602)], ids=["anothers", "group", "all"]
    )
    def test_a_file_that_others_could_write(self, here: int, tmp_path: Path, owner: int, bits: int) -> None:
        """A file that somebody other than root could have written is refused."""
        (tmp_path / "f").write_bytes(b"{}")
        os.chown(tmp_path / "f", owner, 0)
        os.chmod(tmp_path / "f", bits)
        with pytest.raises(Unreadable, match="not root's alone"):
            fds.read_file(here, "f", limit=10)


class TestReplaceFile:
    @pytest.mark.parametrize("durable", [True, False])
    def test_the_new_content(self, here: int, tmp_path: Path, durable: bool) -> None:  # noqa: FBT001
        """The new content stands under the name, 0600, and nothing else is left."""
        (tmp_path / "f").write_text("old")
        fds.replace_file(here, "f", b"new", scratch=here, durable=durable)
        assert (tmp_path / "f").read_text() == "new"
        assert mode(tmp_path / "f") == "0600"
        assert os.listdir(tmp_path) == ["f"]

    def test_a_failure_leaves_the_old_content(self, here: int, tmp_path: Path) -> None:
        """Where the rename fails, the old state stays and the temporary file goes."""
        (tmp_path / "f").mkdir()
        with pytest.raises(IsADirectoryError):
            fds.replace_file(here, "f", b"new", scratch=here, durable=True)
        assert os.listdir(tmp_path) == ["f"]

    def test_it_is_synced_before_and_after(self, here: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The content is on disk before the rename, the name after it."""
        steps: list[str] = []
        sync, rename = os.fsync, os.rename

        def note_sync(fd: int) -> None:
            steps.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
            sync(fd)

        def note_rename(*args: str, src_dir_fd: int, dst_dir_fd: int) -> None:
            steps.append("rename")
            rename(*args, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(os, "rename", note_rename)
        fds.replace_file(here, "f", b"new", scratch=here, durable=True)
        assert steps == ["sync file", "rename", "sync directory"]

    def test_a_file_that_exists_is_not_written(self, here: int, tmp_path: Path) -> None:
        """write_file makes the file, or fails."""
        (tmp_path / "f").symlink_to("elsewhere")
        with pytest.raises(FileExistsError):
            fds.write_file(here, "f", b"new", durable=False)
        assert not (tmp_path / "elsewhere").exists()


def test_a_mount_that_cannot_be_told(here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is left to find out which mount an entry is on, none is lost either (see nothing_left)."""

    def no_descriptor_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    make_tree(tmp_path, "dir a")
    monkeypatch.setattr(linux, "SYS_OPENAT2", 100_000)  # no kernel knows it: ENOSYS
    monkeypatch.setattr(fds, "mount_id", no_descriptor_left)
    with pytest.raises(OSError, match="Too many open files"):
        fds.open_below(here, "a", directory=True)


def test_mount_ids_tell_bind_mounts_apart(tmp_path: Path) -> None:
    """Two mounts of one directory have different ids."""
    with mounted("--bind", str(tmp_path), str(tmp_path)):
        with (
            closing(os.open(tmp_path, os.O_RDONLY)) as inside,
            closing(os.open(tmp_path.parent, os.O_RDONLY)) as outside,
        ):
            assert fds.mount_id(inside) != fds.mount_id(outside)
