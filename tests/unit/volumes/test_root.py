"""The root on disk: what makes it, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from hostprep.errors import BadSetting
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from hostprep.volumes.root import PARTS
from hostprep.volumes.store import Store
from tests.support.disks import Disk
from tests.support.fixtures import Command, OpenDriver
from tests.support.host import PYTHON, REPOSITORY, Host, mode, mounted, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


def refused(host: Host, changed: Mapping[str, str] = MappingProxyType({}), *, create: bool = True) -> str:
    with pytest.raises(BadSetting) as caught:
        Store.open_root(Settings.read({**host.environ, **changed}), create=create)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestRoot:
    def test_made(self, driver: Driver, host: Host) -> None:
        """A missing root is made: 0700 root:root, with its parts and its marker."""
        assert (owner(host.root), mode(host.root)) == ((0, 0), "0700")
        assert sorted(os.listdir(host.root)) == sorted(["hostprep.json", *PARTS])
        assert {mode(host.root / part) for part in PARTS} == {"0700"}
        marker = json.loads((host.root / "hostprep.json").read_text())
        assert set(marker) == {"format", "id"}
        assert (marker["format"], mode(host.root / "hostprep.json")) == (1, "0600")

    def test_an_empty_one(self, open_driver: OpenDriver, host: Host) -> None:
        """An empty directory becomes a root, and is closed to others."""
        host.root.mkdir(mode=0o755)
        open_driver()
        assert mode(host.root) == "0700"

    def test_a_new_file_system(self, open_driver: OpenDriver, host: Host) -> None:
        """A file system that holds nothing but lost+found counts as empty."""
        make_tree(host.root.parent, "dir root/lost+found")
        open_driver().create("mongo", {}, soon())

    def test_an_interrupted_making(self, open_driver: OpenDriver, host: Host) -> None:
        """A root whose making was interrupted is made again, and nothing of that is left."""
        left = "file root/.new-0123456789abcdef"
        make_tree(host.root.parent, "dir root/locks", "file root/locks/held", left, "dir root/volumes")
        open_driver().create("mongo", {}, soon())
        assert sorted(os.listdir(host.root)) == ["hostprep.json", "locks", "mounts", "trash", "volumes"]

    def test_somebodys_file(self, host: Host) -> None:
        """A file with a name that only looks like one of hostprep's is somebody's: refused, and left as it is."""
        make_tree(host.root.parent, "dir root 0:0 700", "file root/.new-year")
        assert "not empty" in refused(host)
        assert os.listdir(host.root) == [".new-year"]

    def test_again(self, open_driver: OpenDriver, host: Host) -> None:
        """The marker is made once."""
        open_driver()
        before = (host.root / "hostprep.json").read_bytes()
        open_driver()
        assert (host.root / "hostprep.json").read_bytes() == before

    def test_at_once(self, host: Host) -> None:
        """Several processes that make one root at once agree on it."""
        processes = [host.begin("create", f"v{number}") for number in range(4)]
        assert [process.wait(30) for process in processes] == [0] * 4
        assert host.left_in_volumes() == ["v0", "v1", "v2", "v3"]

    def test_one_that_is_not_hostpreps(self, host: Host) -> None:
        """A directory that holds something else is refused, and left as it is."""
        make_tree(host.root.parent, "dir root/precious 5:5 755")
        host.root.chmod(0o700)
        assert "has no hostprep.json" in refused(host)
        assert os.listdir(host.root) == ["precious"]

    def test_volumes_without_a_marker(self, driver: Driver, host: Host) -> None:
        """A root that lost its marker is refused, not begun anew."""
        driver.create("mongo", {}, soon())
        (host.root / "hostprep.json").unlink()
        assert "has no hostprep.json" in refused(host)
        assert not (host.root / "hostprep.json").exists()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            "null",
            '{"format": 2, "id": "x"}',
            '{"format": 1}',
            '{"format": "1", "id": "x"}',
            '{"format": 1, "id": 5}',
        ],
    )
    def test_a_marker_of_another_kind(self, driver: Driver, host: Host, text: str) -> None:
        """A damaged marker, or one of another format, is refused."""
        (host.root / "hostprep.json").write_text(text)
        assert "hostprep.json" in refused(host)

    @pytest.mark.parametrize("part", PARTS)
    def test_a_part_that_is_missing(self, driver: Driver, host: Host, part: str) -> None:
        """A root of which a part is missing is refused: made anew, the engine would forget every volume."""
        subprocess.run(["mv", host.root / part, host.root.parent], check=True)
        assert f"{host.root}/{part} is missing" in refused(host)

    @pytest.mark.parametrize(
        ("ids", "bits"), [((1000, 0), 0o700), ((0, 0), 0o755), ((0, 0), 0o710), ((0, 0), 0o777)], ids=str
    )
    def test_one_that_is_not_roots_alone(self, driver: Driver, host: Host, ids: tuple[int, int], bits: int) -> None:
        """A root that others own or may enter is refused, with the command to mend it."""
        os.chown(host.root, *ids)
        host.root.chmod(bits)
        assert "chmod 0700" in refused(host) or "chown 0:0" in refused(host)

    @pytest.mark.parametrize(("ids", "bits"), [("1000:1000", "755"), ("0:0", "777"), ("0:0", "775")], ids=str)
    def test_parents_that_are_not_roots_alone(self, host: Host, ids: str, bits: str) -> None:
        """A root that somebody else could swap for another is refused, and not made."""
        make_tree(host.root.parent, f"dir above {ids} {bits}")
        message = refused(host, {"HOSTPREP_ROOT": f"{host.root.parent}/above/root"})
        assert message.startswith("HOSTPREP_ROOT: somebody other than root")

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
    def test_parents_that_are_missing(self, host: Host, umask: int) -> None:
        """Directories above the root that are missing are made, root's and 0755, whatever the umask is."""
        before, root = os.umask(umask), f"{host.srv}/a/b/root"
        try:
            Store.open_root(Settings.read({**host.environ, "HOSTPREP_ALLOW": "", "HOSTPREP_ROOT": root}), create=True)
        finally:
            os.umask(before)
        assert [mode(host.srv / path) for path in ("a", "a/b", "a/b/root")] == ["0755", "0755", "0700"]

    @pytest.mark.parametrize(("ids", "bits"), [("1000:1000", "755"), ("0:0", "777")], ids=str)
    def test_a_refused_one_leaves_nothing(self, host: Host, ids: str, bits: str) -> None:
        """Where somebody else could swap a directory that is missing, none is made."""
        make_tree(host.root.parent, f"dir above {ids} {bits}")
        refused(host, {"HOSTPREP_ROOT": f"{host.root.parent}/above/a/b/root"})
        assert os.listdir(host.root.parent / "above") == []

    def test_a_file(self, host: Host) -> None:
        """A file in the place of the root is refused."""
        host.root.touch()
        assert str(host.root) in refused(host)

    def test_as_another_user(self, host: Host) -> None:
        """Without root it says that it needs to be."""
        done = subprocess.run(
            [
                PYTHON,
                "-c",
                "import multiprocessing.connection, os, sys, tomllib, hostprep.cli.commands, hostprep.cli.volumes; "
                "from hostprep.__main__ import main; os.setuid(1000); sys.argv = ['hostprep', 'ls']; main()",
            ],
            cwd=REPOSITORY,
            env=host.process_environ(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("hostprep: hostprep needs to be root (")


class TestMarkerRequired:
    REQUIRED = {"HOSTPREP_REQUIRE_MARKER": "1"}

    @pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
    def test_nothing_is_made(self, host: Host, there: bool) -> None:  # noqa: FBT001
        """With HOSTPREP_REQUIRE_MARKER=1 an empty or missing root is refused, and nothing is made."""
        if there:
            host.root.mkdir(mode=0o700)
        message = refused(host, self.REQUIRED)
        assert "HOSTPREP_REQUIRE_MARKER=1" in message
        assert "mounted" in message
        assert host.root.exists() is there
        assert not there or os.listdir(host.root) == []

    def test_a_root_with_a_marker(self, open_driver: OpenDriver) -> None:
        """A root with its marker is used."""
        open_driver()
        open_driver(**self.REQUIRED).create("mongo", {}, soon())

    def test_an_unmounted_disk(self, open_driver: OpenDriver, host: Host) -> None:
        """A disk with a root on it is used while it is mounted, and its empty mount point is not."""
        host.root.mkdir(mode=0o700)
        with mounted("-t", "tmpfs", "-o", "mode=0700", "none", str(host.root)):
            open_driver()
            open_driver(**self.REQUIRED)
        refused(host, self.REQUIRED)


class TestServedBefore:
    """HOSTPREP_REQUIRE_MARKER is at its default."""

    @pytest.fixture
    def known(self, host: Host) -> Path:
        """What is remembered of the host's root."""
        return Path(host.environ["HOSTPREP_KNOWN_ROOTS"]) / str(host.root)[1:].replace("/", "%2F")

    @pytest.fixture
    def disk(self, host: Host, tmp_path: Path) -> Disk:
        """A disk for the root."""
        host.root.mkdir(mode=0o755)
        (tmp_path / "images").mkdir()
        return Disk(tmp_path / "images")

    def test_remembered(self, driver: Driver, host: Host, known: Path) -> None:
        """Whoever makes a root leaves its path and its id elsewhere, for root alone."""
        identity = json.loads((host.root / "hostprep.json").read_text())["id"]
        assert json.loads(known.read_text()) == {"root": str(host.root), "id": identity, "mounts": []}
        assert (mode(known), mode(known.parent), owner(known)) == ("0600", "0700", (0, 0))

    def test_what_an_interrupted_write_left(self, open_driver: OpenDriver, known: Path) -> None:
        """Where a root is remembered, temporary files of more than an hour ago are removed, and nothing else is."""
        known.parent.mkdir(mode=0o700, parents=True)
        old, new, other = (known.parent / name for name in (f".new-{'0' * 16}", f".new-{'1' * 16}", ".new-mine"))
        for file in (old, new, other):
            file.touch()
            if file is not new:
                os.utime(file, (1, 1))
        open_driver()
        assert set(known.parent.iterdir()) == {new, other, known}

    @pytest.mark.parametrize("left", ["nothing", "an empty directory", "lost+found", "an interrupted making"])
    @pytest.mark.parametrize("create", [True, False])
    def test_nothing_is_made(self, driver: Driver, host: Host, known: Path, left: str, create: bool) -> None:  # noqa: FBT001
        """Where the root was, what is missing or empty is no new root: it says so, and how to begin anew."""
        shutil.rmtree(host.root)
        inside = {"lost+found": ["dir root/lost+found"], "an interrupted making": ["dir root/locks"]}
        make_tree(host.root.parent, *([] if left == "nothing" else ["dir root 0:0 755", *inside.get(left, [])]))
        before = sorted(map(str, host.root.rglob("*")))

        message = refused(host, create=create)

        assert message.startswith(f"{host.root} {'does not exist' if left == 'nothing' else 'is empty'}; this host has")
        assert "is its disk mounted?" in message
        assert message.endswith(f"rm {known})")
        assert sorted(map(str, host.root.rglob("*"))) == before
        assert left == "nothing" or mode(host.root) == "0755"

    def test_begun_anew(self, open_driver: OpenDriver, host: Host, known: Path) -> None:
        """Once what is remembered is removed, as the message says, an empty directory is a new root."""
        open_driver()
        shutil.rmtree(host.root)
        refused(host)
        known.unlink()
        open_driver().create("mongo", {}, soon())

    def test_a_server_without_its_disk(self, host: Host, disk: Disk) -> None:
        """A server does not start on the bare mount point; with the disk mounted again, the volumes are there."""
        with disk.mounted(host.root):
            host.root.chmod(0o700)
            server = host.serve()
            assert server("Create", Name="mongo").status == 200
            assert server.terminate() == 0

        for command in (["serve"], ["create", "mongo"], ["ls"]):
            done = host.run(*command)
            assert (done.code, done.out) == (1, "")
            assert f"{host.root} is empty; this host has served volumes from there before" in done.err

        assert os.listdir(host.root) == []
        with disk.mounted(host.root):
            server = host.serve()
            assert server("Get", Name="mongo").status == 200
            assert server.terminate() == 0

    def test_another_root(self, driver: Driver, host: Host, known: Path) -> None:
        """Another hostprep's root in its place is refused: an accident may have made it on the bare mount point."""
        host.root.rename(host.root.with_name("disk"))
        known.rename(known.with_name("aside"))
        assert Store.open_root(Settings.read(host.environ), create=True).identity != driver.store.identity
        known.with_name("aside").rename(known)
        assert refused(host).startswith(f"{host.root} is another root; this host has served volumes from there before")
        assert "another root" in refused(host, create=False)

    def test_a_backup(self, driver: Driver, host: Host, open_driver: OpenDriver) -> None:
        """The same root on another file system, with other inodes, as from a backup, is the same root."""
        driver.create("mongo", {}, soon())
        host.root.rename(host.root.with_name("lost"))
        host.root.mkdir(mode=0o700)
        with mounted("-t", "tmpfs", "-o", "mode=0700", "none", str(host.root)):
            subprocess.run(["cp", "-a", f"{host.root.with_name('lost')}/.", host.root], check=True)
            assert open_driver().mount("mongo", soon()) == str(host.data("mongo"))

    def test_an_older_root(self, open_driver: OpenDriver, host: Host, known: Path, hostprep: Command) -> None:
        """A root that an older version made is remembered when it is served, not when it is looked at."""
        open_driver()
        known.unlink()
        assert hostprep("ls").code == 0
        assert not known.exists()
        open_driver()
        assert known.exists()

    def test_a_part_on_another_disk(self, open_driver: OpenDriver, host: Host) -> None:
        """Where a disk was mounted on `volumes`, the empty directory below it does not tell what volumes there are."""
        open_driver()
        with mounted("-t", "tmpfs", "-o", "mode=0700", "none", str(host.root / "volumes")):
            open_driver().create("mongo", {}, soon())
        for create in (True, False):
            assert f"{host.root} has nothing mounted at volumes; this host has" in refused(host, create=create)

    def test_below_the_root(self, host: Host) -> None:
        """What is remembered on the root's own disk would be gone with it."""
        place = {"HOSTPREP_KNOWN_ROOTS": f"{host.root}/known"}
        assert "HOSTPREP_KNOWN_ROOTS lies in HOSTPREP_ROOT" in refused(host, place)
        assert not host.root.exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"root": "/"}', '{"id": "x"}', '{"id": "x", "mounts": 5}'])
    def test_damaged(self, open_driver: OpenDriver, host: Host, known: Path, text: str) -> None:
        """A damaged memory still says that there was a root; the next start on that root mends it."""
        identity = open_driver().store.identity
        known.write_text(text)
        known.chmod(0o644)
        host.root.rename(host.root.with_name("disk"))
        refused(host)
        host.root.with_name("disk").rename(host.root)
        open_driver()
        assert (json.loads(known.read_text())["id"], mode(known)) == (identity, "0600")

    @pytest.mark.parametrize("place", ["others/known", "others", "nobody/known"])
    @pytest.mark.parametrize("whose", ["0:0 777", "1000:1000 700"])
    def test_others_could_write_it(self, driver: Driver, host: Host, known: Path, place: str, whose: str) -> None:
        """What others could have written or removed is not believed."""
        above = known.parent.parent
        make_tree(
            above, f"dir others {whose}", "dir others/known 0:0 700", "dir nobody 0:0 755", f"dir nobody/known {whose}"
        )
        message = refused(host, {"HOSTPREP_KNOWN_ROOTS": f"{above}/{place}"}, create=False)
        assert message.startswith("HOSTPREP_KNOWN_ROOTS: ")

    def test_it_cannot_be_remembered(
        self, open_driver: OpenDriver, host: Host, known: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where nothing can be written, as in a read-only /etc, the root is served, and the log says what is amiss."""
        known.parent.mkdir(mode=0o700)
        with mounted("-t", "tmpfs", "-o", "ro,mode=0700", "none", str(known.parent)):
            open_driver().create("mongo", {}, soon())
        (line,) = (each.getMessage() for each in caplog.records if each.levelname == "WARNING")
        assert line.startswith(f"{host.root} is not remembered: ")
        assert "HOSTPREP_REQUIRE_MARKER=1" in line

    def test_within_the_managed_plugin(self, host: Host) -> None:
        """The plugin remembers within itself: whoever means to begin anew has to replace it."""
        settings = Settings(root=str(host.root), known_roots=host.environ["HOSTPREP_KNOWN_ROOTS"], managed=True)
        Store.open_root(settings, create=True)
        shutil.rmtree(host.root)
        with pytest.raises(BadSetting, match="is its disk mounted.* docker plugin rm"):
            Store.open_root(settings, create=True)


@pytest.mark.parametrize(
    "command",
    [["ls"], ["ls", "--trash"], ["ls", "--retained"], ["status", "x"], ["rm", "x"], ["purge"], ["restore", "x"]],
)
def test_only_create_and_serve_make_a_root(hostprep: Command, host: Host, command: list[str]) -> None:
    """No other command creates the root."""
    done = hostprep(*command)
    assert done.code == 1
    assert "does not exist" in done.err
    assert not host.root.exists()
