"""A `path` below a directory that is not root's alone is answered as a mount of the directory that was verified."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.errors import NotReady
from hostprep.host import fds, linux
from hostprep.host.mountinfo import Mount, mount_table
from hostprep.options import Name
from hostprep.volumes import pins
from hostprep.volumes.driver import Driver
from tests.support.fixtures import Command, OpenDriver
from tests.support.host import PYTHON, REPOSITORY, Docker, Host, mode, mounted, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}
HERE = os.getpid()


def at(place: Path) -> list[Mount]:
    """What is mounted at *place*."""
    return [mount for mount in mount_table() if mount.point == str(place)]


def unmount_all(below: Path) -> None:
    for mount in reversed(mount_table()):
        if mount.point.startswith(f"{below}/"):
            subprocess.run(["umount", "-l", mount.point], check=True)


@pytest.fixture
def home(host: Host) -> Iterator[Path]:
    """A user's home below an allowed prefix, with a directory `mongodb` in it; beside it a canary of nobody's."""
    make_tree(host.srv, "dir home 1000:1000 755", "dir home/mongodb 1000:1000 755")
    make_tree(host.srv.parent, "dir canary 7:7 750", "file canary/file 7:7 640 precious")
    canary = host.srv.parent / "canary"
    yield host.srv / "home"
    unmount_all(host.root)
    if (host.root / "mounts").exists():
        subprocess.run(["chattr", "-R", "-i", host.root / "mounts"], check=True)
    assert (owner(canary), mode(canary), owner(canary / "file")) == ((7, 7), "0750", (7, 7))
    assert os.listdir(canary) == ["file"]


@pytest.fixture
def canary(home: Path, host: Host) -> Path:
    return host.srv.parent / "canary"


@pytest.fixture
def place(host: Host) -> Path:
    """Where the volume mongo is answered to be."""
    return host.root / "mounts" / "mongo"


@pytest.fixture
def mongo(docker: Docker, home: Path) -> Docker:
    """An engine with the volume mongo, which is the home's mongodb."""
    docker.created("mongo", **MONGO, path=f"{home}/mongodb")
    return docker


def swap(home: Path, *, link_to: Path | None = None) -> None:
    """What the home's owner may do: put a link, or another directory, in the place of mongodb."""
    (home / "mongodb").rename(home / "moved")
    if link_to:
        (home / "mongodb").symlink_to(link_to)
    else:
        (home / "mongodb").mkdir()
        os.chown(home / "mongodb", 1000, 1000)


class TestAnswer:
    def test_every_verb_answers_the_mount(self, mongo: Docker, home: Path, place: Path, driver: Driver) -> None:
        """Get, List and Path name the place before there is a mount; Mount makes it, and it is the home's directory."""
        assert mongo.get("mongo")["Mountpoint"] == str(place)
        assert mongo.listed() == [{"Name": "mongo", "Mountpoint": str(place)}]
        assert mongo("Path", Name="mongo").body["Mountpoint"] == str(place)
        assert at(place) == []

        assert mongo.mounted("mongo") == place
        (place / "file").write_text("through the mount")

        assert len(at(place)) == 1
        assert (home / "mongodb" / "file").read_text() == "through the mount"
        assert owner(place) == owner(home / "mongodb") == (184, 998)
        assert mongo.status("mongo")["ready"] is True

    def test_a_missing_directory_is_made(self, docker: Docker, home: Path, host: Host) -> None:
        """Create makes the last component in somebody's home, with the declared owner and mode."""
        docker.created("new", **MONGO, path=f"{home}/new")
        assert (owner(home / "new"), mode(home / "new")) == ((184, 998), "0755")
        assert os.path.samefile(docker.mounted("new"), home / "new")

    def test_a_path_of_roots_alone(self, docker: Docker, home: Path, host: Host) -> None:
        """Where every directory above is root's alone the path itself is answered, and nothing is mounted."""
        docker.created("db", path=f"{host.srv}/db")
        assert docker.mounted("db") == host.srv / "db"
        assert os.listdir(host.root / "mounts") == []

    @pytest.mark.parametrize("bits", ["775", "757", "1777"])
    def test_a_parent_that_others_may_write(
        self, docker: Docker, host: Host, home: Path, bits: str, place: Path
    ) -> None:
        """Below a directory of root's that others may write to, a sticky one as well, a mount is answered, too."""
        make_tree(host.srv, f"dir open 0:5 {bits}", "dir open/db 1000:1000")
        docker.created("mongo", path=f"{host.srv}/open/db")
        assert docker.mounted("mongo") == place

    @pytest.mark.parametrize("path", ["link", "link/db", "home/link", "home/link/db", "home/dangling", "home/file"])
    def test_a_symlink_anywhere(self, docker: Docker, host: Host, home: Path, canary: Path, path: str) -> None:
        """A symlink in any component, and a file, is refused with 403, and nothing is made."""
        make_tree(host.srv, f"symlink link {canary}", f"symlink home/link {canary}", "symlink home/dangling nowhere")
        make_tree(host.srv, "file home/file")
        answer = docker.create("mongo", path=f"{host.srv}/{path}")
        assert answer.status == 403
        assert "symlink" in answer.error or "file" in answer.error
        assert (docker.names(), os.listdir(host.root / "mounts")) == ([], [])

    def test_what_is_mounted_inside(self, mongo: Docker, home: Path, host: Host, place: Path) -> None:
        """What is mounted in the directory is seen through the mount, as with docker run -v, before and after."""
        make_tree(home / "mongodb", "dir a", "dir b")
        with mounted("-t", "tmpfs", "none", f"{home}/mongodb/a"):
            mongo.mounted("mongo")
            (place / "a" / "file").touch()
            assert (home / "mongodb" / "a" / "file").exists()
            assert mongo.remove("mongo").status == 200
            assert (home / "mongodb" / "a" / "file").exists()

    def test_as_under_systemd(self, docker: Docker, host: Host, canary: Path, home: Path, place: Path) -> None:
        """Where mounts are shared, a disk that comes or goes below is seen, and Remove unmounts none of them."""
        disk = host.srv / "disk"
        disk.mkdir()
        with mounted("-t", "tmpfs", "none", str(disk)):
            subprocess.run(["mount", "--make-shared", disk], check=True)
            make_tree(disk, "dir home 1000:1000 755", "dir home/db/a", "dir home/db/b")
            docker.created("mongo", path=f"{disk}/home/db")
            with mounted("-t", "tmpfs", "early", f"{disk}/home/db/a"):
                docker.mounted("mongo")
                subprocess.run(["mount", "-t", "tmpfs", "late", disk / "home/db/b"], check=True)
                assert [len(at(place / each)) for each in ("a", "b")] == [1, 1]
                docker.remove("mongo")
                assert [len(at(disk / "home/db" / each)) for each in ("a", "b")] == [1, 1]
                subprocess.run(["umount", disk / "home/db/b"], check=True)


class TestOnce:
    def test_never_stacked(self, mongo: Docker, place: Path) -> None:
        """Many Mounts, Unmounts between them, and there is the one mount that the first has made."""
        mongo.mounted("mongo")
        (first,) = at(place)
        with fds.closing(os.open(place, os.O_RDONLY)):  # or another mount could get the number of this one
            for _ in range(20):
                mongo.unmount("mongo")
                mongo.mounted("mongo")
        assert at(place) == [first]

    def test_two_processes(self, mongo: Docker, host: Host, place: Path) -> None:
        """Two processes that mount at the same moment make one mount."""
        script = (
            "import os, sys, time; from hostprep.volumes.driver import Driver; from hostprep.settings import Settings\n"
            "driver = Driver.open(Settings.read(os.environ), create=False); print(flush=True)\n"
            "for _ in sys.stdin:\n"
            "    driver.mount('mongo', time.monotonic() + 20, engine=os.getpid()); print(flush=True)\n"
        )
        started = [
            subprocess.Popen(
                [PYTHON, "-uc", script], cwd=REPOSITORY, env=host.process_environ(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]  # fmt: skip
        told = [process.stdout.readline() for process in started if process.stdout]
        for _ in range(60):
            for process in started:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
            told += [process.stdout.readline() for process in started if process.stdout]
            assert len(at(place)) == 1
            subprocess.run(["umount", place], check=True)
        for process in started:
            process.communicate(timeout=60)
        assert [process.returncode for process in started] == [0, 0]
        assert told == ["\n"] * 122

    def test_after_a_reboot(self, mongo: Docker, home: Path, place: Path) -> None:
        """A mount that is gone, as after a reboot, is made anew by the next Mount."""
        mongo.mounted("mongo")
        subprocess.run(["umount", place], check=True)
        assert os.path.samefile(mongo.mounted("mongo"), home / "mongodb")
        assert len(at(place)) == 1

    def test_somebody_mounted_on_it(self, mongo: Docker, home: Path, place: Path) -> None:
        """What somebody mounted over the mount is taken away by the next Mount."""
        mongo.mounted("mongo")
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        assert os.path.samefile(mongo.mounted("mongo"), home / "mongodb")
        assert len(at(place)) == 1

    def test_killed_before_it_was_mounted(self, mongo: Docker, home: Path, place: Path) -> None:
        """Interrupted with the mountpoint made and nothing mounted, the next Mount goes on."""
        place.mkdir(mode=0o700)
        assert os.path.samefile(mongo.mounted("mongo"), home / "mongodb")

    def test_server_killed(self, home: Path, host: Host, place: Path) -> None:
        """A server killed leaves the mount; the next one finds it, and asks nothing of it."""
        for _ in range(2):
            server = host.serve()
            server("Create", Name="mongo", Opts={"path": f"{home}/mongodb"})
            answer = server("Mount", Name="mongo", ID="1")
            assert answer.body == {"Mountpoint": str(place), "Err": ""}
            server.process.kill()
            server.ended()
            assert len(at(place)) == 1


class TestSwapped:
    def test_after_mount(self, mongo: Docker, home: Path, canary: Path) -> None:
        """A link put there after the answer leads nobody astray; the next Mount says what it is and answers nothing."""
        place = mongo.mounted("mongo")
        (home / "mongodb" / "file").touch()
        swap(home, link_to=canary)
        assert os.listdir(place) == ["file"]
        assert os.path.samefile(place, home / "moved")
        answer = mongo.mount("mongo")
        assert (answer.status, "Mountpoint" in answer.body) == (403, False)
        assert f"{home}/mongodb is a symlink" in answer.error
        assert mongo.status("mongo")["ready"] is False

    def test_for_another_directory(self, mongo: Docker, driver: Driver, home: Path) -> None:
        """Another real directory is answered once it is accepted; who runs on the old one keeps it."""
        place = mongo.mounted("mongo")
        with fds.closing(os.open(place, os.O_RDONLY)) as running:
            swap(home)
            answer = mongo.mount("mongo")
            assert (answer.status, "is another directory than before" in answer.error) == (500, True)
            assert os.path.samefile(place, home / "moved")
            assert owner(home / "mongodb") != (184, 998)
            driver.apply("mongo", {}, (), soon(), accept_data=True)
            assert os.path.samefile(mongo.mounted("mongo"), home / "mongodb")
            assert len(at(place)) == 1
            assert owner(place) == (184, 998)
            assert os.path.samestat(os.fstat(running), os.stat(home / "moved"))

    def test_gone(self, mongo: Docker, home: Path) -> None:
        """A directory that is gone is not made anew, nor is the old one answered."""
        mongo.mounted("mongo")
        (home / "mongodb").rename(home / "moved")
        answer = mongo.mount("mongo")
        assert answer.status == 500
        assert f"{home}/mongodb does not exist" in answer.error
        assert not (home / "mongodb").exists()

    def test_all_the_time(self, mongo: Docker, home: Path, canary: Path) -> None:
        """Swapped in a tight loop, every answer leads to the verified directory, or is none."""
        verified = os.stat(home / "mongodb")
        (home / "link").symlink_to(canary)
        over = threading.Event()

        def attack() -> None:
            while not over.is_set():
                (home / "mongodb").rename(home / "moved")
                (home / "link").rename(home / "mongodb")
                (home / "mongodb").rename(home / "link")
                (home / "moved").rename(home / "mongodb")

        attacker = threading.Thread(target=attack)
        attacker.start()
        try:
            statuses = set()
            for _ in range(300):
                answer = mongo.mount("mongo")
                statuses.add(answer.status)
                if answer.status == 200:
                    assert os.path.samestat(os.stat(answer.body["Mountpoint"]), verified)
        finally:
            over.set()
            attacker.join()
        assert 200 in statuses
        assert statuses <= {200, 403, 500}

    @pytest.mark.parametrize("other", ["symlink", "full", "anothers"])
    def test_while_it_is_made(
        self, docker: Docker, home: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, other: str
    ) -> None:
        """What takes the place of a directory that Create has just made is refused and left alone."""
        make_tree(home, "dir sub 1000:1000")
        home = home / "sub"
        make_tree(home, "dir full", "file full/x", "dir anothers 1000:1000")
        mkdir = os.mkdir

        def swapping(path: str, bits: int = 0o777, *, dir_fd: int | None = None) -> None:
            mkdir(path, bits, dir_fd=dir_fd)
            if path == "new":
                (home / "new").rename(home / "moved")
                (home / "new").symlink_to(canary) if other == "symlink" else (home / other).rename(home / "new")

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", swapping)
            answer = docker.create("mongo", **MONGO, path=f"{home}/new")
        assert answer.status == 403
        assert "had just been made" in answer.error
        assert docker.names() == []
        assert (home / "new").exists() is (other != "anothers")  # an empty one is taken back
        if other == "full":
            assert owner(home / "new") == (0, 0)


class TestForeign:
    def test_a_parent_that_became_anothers(self, docker: Docker, home: Path, host: Host, place: Path) -> None:
        """Once somebody could redirect the path a mount is answered, and it stays so."""
        for number in range(20):  # of so many List looks at some only, each time
            docker.created(f"a{number}")
        (host.srv / "a").mkdir()
        docker.created("mongo", **MONGO, path=f"{host.srv}/a/db")
        assert docker.mounted("mongo") == host.srv / "a" / "db"
        time.sleep(0.1)  # now a listing is kept
        assert docker.listed()[-1] == {"Name": "mongo", "Mountpoint": f"{host.srv}/a/db"}

        os.chown(host.srv / "a", 1000, 1000)
        status = docker.status("mongo")
        assert status["ready"] is False
        assert any("somebody other than root" in warning for warning in status["warnings"])
        assert docker.mounted("mongo") == place
        assert os.path.samefile(place, host.srv / "a" / "db")
        assert docker.listed()[-1] == {"Name": "mongo", "Mountpoint": str(place)}

        os.chown(host.srv / "a", 0, 0)
        assert docker.mounted("mongo") == place
        assert docker.status("mongo")["ready"] is True


class TestRemove:
    def test_gone_with_the_volume(self, mongo: Docker, home: Path, host: Host) -> None:
        """Remove takes mount and mountpoint away; the directory and what is in it stay, as they are."""
        (mongo.mounted("mongo") / "file").write_text("kept")
        assert [mongo.remove("mongo").status for _ in range(2)] == [200, 200]
        assert os.listdir(host.root / "mounts") == []
        assert (home / "mongodb" / "file").read_text() == "kept"
        assert owner(home / "mongodb") == (184, 998)

    @pytest.mark.parametrize("retained", ["retain", ""])
    def test_from_the_command_line(
        self, docker: Docker, home: Path, host: Host, hostprep: Command, retained: str
    ) -> None:
        """hostprep rm takes it away, of a volume whose record is retained too, and status says where the data is."""
        docker.created("mongo", path=f"{home}/mongodb", **({"on_remove": retained} if retained else {}))
        place = docker.mounted("mongo")
        assert hostprep("status", "mongo", "--json").json["mountpoint"] == str(place)
        assert hostprep("rm", "mongo").code == 0
        assert os.listdir(host.root / "mounts") == []
        assert docker.created("mongo", **({} if retained else {"path": f"{home}/mongodb"})) == place
        assert os.path.samefile(docker.mounted("mongo"), home / "mongodb")

    def test_restored_under_another_name(self, mongo: Docker, driver: Driver, home: Path, host: Host) -> None:
        """A restored volume is mounted by its next Mount, under its new name."""
        mongo.mounted("mongo")
        mongo.remove("mongo")
        driver.restore("mongo", entry=None, new_name="other", deadline=soon())
        assert mongo.get("other")["Mountpoint"] == f"{host.root}/mounts/other"
        assert os.path.samefile(mongo.mounted("other"), home / "mongodb")
        assert os.listdir(host.root / "mounts") == ["other"]

    def test_a_long_name(self, docker: Docker, home: Path, host: Host) -> None:
        """The longest name that a volume may have can be mounted and removed."""
        docker.created("n" * 255, path=f"{home}/mongodb")
        docker.mounted("n" * 255)
        assert docker.remove("n" * 255).status == 200
        assert os.listdir(host.root / "mounts") == []

    def test_a_failed_create(
        self, docker: Docker, driver: Driver, home: Path, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A Create that fails takes back the mount that a Mount has made meanwhile."""
        ensure = driver.readiness.ensure

        def failing(name: Name, deadline: float, **_: object) -> str:
            ensure(name, deadline, engine=HERE)
            raise NotReady("cannot be made right")

        monkeypatch.setattr(driver.readiness, "ensure", failing)
        assert docker.create("mongo", path=f"{home}/mongodb").status == 500
        assert (os.listdir(host.root / "mounts"), docker.names()) == ([], [])
        assert owner(home / "mongodb") == (1000, 1000)

    def test_swept_at_start(self, mongo: Docker, driver: Driver, home: Path, host: Host, place: Path) -> None:
        """At start the mount of a volume that is gone goes, unless a step on that name is under way; others stay."""
        make_tree(home, "dir other")
        mongo.created("other", path=f"{home}/other")
        mongo.mounted("other")
        mongo.mounted("mongo")
        os.rename(host.volume("mongo"), host.root / "trash" / "20261124T040000Z-00000000")
        with driver.store.lock("mongo", soon()):
            driver.store.remove_leftovers()
        assert len(at(place)) == 1
        driver.store.remove_leftovers()
        assert os.listdir(host.root / "mounts") == ["other"]
        assert len(at(host.root / "mounts" / "other")) == 1


class TestMountpoint:
    def test_useless_without_the_mount(self, mongo: Docker, place: Path) -> None:
        """Who finds the mountpoint without the mount can neither enter it nor, as root, write or change anything."""
        mongo.mounted("mongo")
        subprocess.run(["umount", place], check=True)
        assert (owner(place), mode(place)) == ((0, 0), "0000")
        with fds.closing(os.open(place.parent, os.O_RDONLY)) as fd:
            try:
                linux.set_immutable(fd, True)
                linux.set_immutable(fd, False)
            except OSError as exc:
                pytest.skip(f"no immutable directories here: {exc.strerror}")
        with pytest.raises(PermissionError):
            (place / "x").touch()
        with pytest.raises(PermissionError):
            os.chown(place, 1, 1)
        with pytest.raises(PermissionError):
            place.chmod(0o755)

    def test_removed_by_hand(self, mongo: Docker, home: Path, host: Host, tmp_path: Path) -> None:
        """The commands of docs/install.md remove hostprep's root, volumes that are left too, and not their data."""
        page = (REPOSITORY / "docs" / "install.md").read_text()
        (commands,) = re.findall(r"^    findmnt.*\n(?:    .*\n)+", page, re.MULTILINE)
        settings = tmp_path / "settings"
        settings.mkdir()
        mongo.mounted("mongo")
        (home / "mongodb/file").touch()

        script = commands.replace("/var/lib/hostprep", str(host.root)).replace("/etc/hostprep", str(settings))
        done = subprocess.run(["sh", "-uc", script], capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr) == (0, "")
        assert (host.root.exists(), settings.exists()) == (False, False)
        assert (home / "mongodb/file").exists()

    def test_what_is_mounted_there_is_not_closed(
        self, mongo: Docker, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a mount stays that was to be detached, Mount fails, and the directory that it leads to is untouched."""
        mongo.mounted("mongo")
        (home / "mongodb").rename(home / "moved")
        make_tree(home, "dir mongodb 184:998 755")
        before = os.stat(home / "moved")
        with monkeypatch.context() as patch:
            patch.setattr(pins, "_detach", lambda *_: False)
            assert mongo.mount("mongo").status == 500
        after = os.stat(home / "moved")
        assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)

    def test_something_was_written_into_it(self, mongo: Docker, place: Path, host: Host) -> None:
        """Something that lies where the mount belongs is neither hidden nor removed: Mount says so."""
        place.mkdir()
        (place / "x").touch()
        answer = mongo.mount("mongo")
        assert (answer.status, at(place)) == (500, [])
        assert f"something was written into {place}" in answer.error
        assert mongo.remove("mongo").status == 200
        assert os.listdir(place) == ["x"]


class TestRefused:
    @pytest.mark.parametrize("call", ["SYS_OPEN_TREE", "SYS_MOUNT_SETATTR", "SYS_MOVE_MOUNT"])
    def test_an_old_kernel(
        self, mongo: Docker, home: Path, host: Host, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        """Without the system calls Mount is refused in words, and Create where that can be told before."""
        monkeypatch.setattr(linux, call, 100_000)  # no kernel knows it: ENOSYS
        answers = [mongo.mount("mongo")]
        if call != "SYS_MOVE_MOUNT":
            answers.append(mongo.create("other", path=f"{home}/other"))
        for answer in answers:
            assert answer.status == 403
            assert "Linux 5.12" in answer.error
        assert mongo.names() == ["mongo"]
        assert not (home / "other").exists()
        assert len(mount_table()) == len({mount.id for mount in mount_table()})

    def test_without_the_capability(self, home: Path, host: Host) -> None:
        """Without CAP_SYS_ADMIN Create is refused in words."""
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", PYTHON, "-m", "hostprep", "create", "mongo", "-o",
             f"path={home}/mongodb"],
            cwd=REPOSITORY, env=host.process_environ(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "CAP_SYS_ADMIN" in done.stderr
        assert host.left_in_volumes() == []


MOUNT_IN = """
import os, sys, time
from hostprep.volumes.driver import Driver
from hostprep.settings import Settings
driver = Driver.open(Settings.read(os.environ), create=False)
print(driver.mount("mongo", time.monotonic() + 10, engine=int(sys.argv[1])))
"""


class TestNamespaces:
    @pytest.mark.parametrize("engine", [HERE, 0], ids=["the engine can be looked at", "it cannot"])
    @pytest.mark.parametrize("propagation", ["private", "slave", "systemd", "shared"])
    def test_another_namespace(
        self, host: Host, home: Path, open_driver: OpenDriver, engine: int, propagation: str
    ) -> None:
        """Where the engine would not see the mount it is refused in words, and nothing is left; else it sees it.

        systemd makes the namespace of a unit a slave of the host's, and then shares it within.
        """
        unshare = {
            "systemd": ["unshare", "-m", "--propagation=slave", "sh", "-c", 'mount --make-rshared / && exec "$@"', "-"],
            "shared": ["unshare", "-m", "--propagation=unchanged"],
        }.get(propagation, ["unshare", "-m", f"--propagation={propagation}"])
        disk = host.srv.parent / "disk"
        disk.mkdir()
        with mounted("-t", "tmpfs", "-o", "mode=0755", "none", str(disk)):
            subprocess.run(["mount", "--make-shared", disk], check=True)
            root = disk / "root"
            driver = open_driver(HOSTPREP_ROOT=str(root))
            driver.create("mongo", {"path": f"{home}/mongodb"}, soon())
            done = subprocess.run(
                [*unshare, PYTHON, "-c", MOUNT_IN, str(engine)],
                cwd=REPOSITORY, env=host.process_environ({"HOSTPREP_ROOT": str(root)}),
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            seen = at(root / "mounts" / "mongo")
            if propagation == "shared":
                assert (done.returncode, done.stdout, len(seen)) == (0, f"{root}/mounts/mongo\n", 1)
            else:
                assert "NotAllowed: the engine would not see" in done.stderr
                assert (seen, os.listdir(root / "mounts")) == ([], [])
            driver.remove("mongo", soon())
            assert os.listdir(root / "mounts") == []

    def test_removed_from_another(self, mongo: Docker, home: Path, host: Host, place: Path) -> None:
        """hostprep rm in a namespace that has a copy of the mount takes away the engine's, too."""
        mongo.mounted("mongo")
        done = subprocess.run(
            ["unshare", "-m", PYTHON, "-m", "hostprep", "rm", "mongo"],
            cwd=REPOSITORY, env=host.process_environ(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (at(place), os.listdir(host.root / "mounts")) == ([], [])
        assert (home / "mongodb").is_dir()
