"""host_uid and host_gid: on disk the files are a host user's, in the volume's containers another's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.errors import Conflict, Invalid, NotAllowed
from hostprep.host import linux
from hostprep.host.mountinfo import mount_table
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from hostprep.volumes.importing import from_directory
from tests.support.host import Docker, Host, mode, mounted, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
MINE = {"uid": "184", "gid": "998", "host_uid": "1000", "host_gid": "1001"}


@pytest.fixture
def home(host: Host) -> Iterator[Path]:
    """A user's home below an allowed prefix, with a directory `mongodb` in it."""
    make_tree(host.srv, "dir home 1000:1001 755", "dir home/mongodb 1000:1001 750")
    yield host.srv / "home"
    for mount in reversed(mount_table()):
        if mount.point.startswith(f"{host.root}/"):
            subprocess.run(["umount", "-l", mount.point], check=True)
    subprocess.run(["chattr", "-R", "-i", host.root / "mounts"], check=True)


def owners(*paths: Path) -> list[tuple[int, int]]:
    return [owner(path) for path in paths]


class TestMount:
    @pytest.mark.parametrize("by_path", [True, False])
    def test_both_numbers(self, docker: Docker, home: Path, by_path: bool) -> None:  # noqa: FBT001
        """In the mount the directory is the container's user's, on disk the host's; what is made there likewise."""
        options = MINE | ({"path": f"{home}/mongodb"} if by_path else {})
        docker.created("mongo", **options)
        place = docker.mounted("mongo")
        on_disk = home / "mongodb" if by_path else place.parents[1] / "volumes" / "mongo" / "_data"
        make_tree(place, "file mine 184:998", "file roots 0:0", "file back 1000:1001")
        assert owners(place, *(place / name for name in ("mine", "roots"))) == [(184, 998), (184, 998), (0, 0)]
        found = owners(on_disk, *(on_disk / name for name in ("mine", "roots", "back")))
        assert found == [(1000, 1001), (1000, 1001), (0, 0), (184, 998)]
        status = docker.status("mongo")
        shown = {key: status[key] for key in ("uid", "gid", "host_uid", "host_gid", "idmapped", "ready", "drift")}
        assert shown == {
            "uid": 184,
            "gid": 998,
            "host_uid": 1000,
            "host_gid": 1001,
            "idmapped": True,
            "ready": True,
            "drift": [],
        }

    def test_before_the_first_mount(self, docker: Docker, home: Path) -> None:
        """Before the first Mount nothing is mounted, and Status says so."""
        place = docker.created("mongo", **MINE)
        assert not place.exists()
        assert docker.status("mongo")["idmapped"] is False

    def test_only_one_of_them(self, docker: Docker, home: Path) -> None:
        """With host_uid alone the group is the same on both sides."""
        docker.created("mongo", uid="184", gid="998", host_uid="1000")
        place = docker.mounted("mongo")
        assert owners(place, place.parents[1] / "volumes/mongo/_data") == [(184, 998), (1000, 998)]

    def test_roots_files(self, docker: Docker, home: Path) -> None:
        """What the container's root makes is the host user's on disk, and no user there can be root on disk."""
        docker.created("mongo", uid="0", gid="0", host_uid="1000", host_gid="1001")
        place = docker.mounted("mongo")
        on_disk = place.parents[1] / "volumes/mongo/_data"
        make_tree(place, "file roots 0:0", "file users 1000:1001")
        assert owners(on_disk, on_disk / "roots") == [(1000, 1001), (1000, 1001)]
        assert 0 not in owner(on_disk / "users")

    def test_the_same_numbers(self, docker: Docker, home: Path) -> None:
        """Where both sides are the same nothing is mounted."""
        docker.created("mongo", uid="184", gid="998", host_uid="184", host_gid="998")
        place = docker.mounted("mongo")
        assert place.name == "_data"
        assert "idmapped" not in docker.status("mongo")

    def test_another_map(self, docker: Docker, home: Path, host: Host) -> None:
        """A mount with another map, or none, is made anew at the next Mount; the right one stays as it is."""
        docker.created("mongo", **MINE)
        place = docker.mounted("mongo")
        first = [mount for mount in mount_table() if mount.point == str(place)]
        assert docker.mounted("mongo") == place
        assert [mount for mount in mount_table() if mount.point == str(place)] == first
        subprocess.run(["umount", place], check=True)
        subprocess.run(["mount", "--bind", host.data("mongo"), place], check=True)
        assert owner(place) == (1000, 1001)
        assert docker.status("mongo")["idmapped"] is False
        docker.mounted("mongo")
        assert owner(place) == (184, 998)
        assert len([mount for mount in mount_table() if mount.point == str(place)]) == 1

    def test_contents_follow(self, docker: Docker, home: Path, host: Host) -> None:
        """Contents that were brought in are given to the host's user, so in containers to theirs."""
        docker.created("mongo", **MINE)
        make_tree(host.data("mongo"), "dir a 33:33", "file a/b 33:33")
        os.chown(host.data("mongo"), 33, 33)
        place = docker.mounted("mongo")
        assert set(owners(place, place / "a", place / "a/b")) == {(184, 998)}
        assert set(owners(*(host.data("mongo") / name for name in ("a", "a/b")))) == {(1000, 1001)}

    def test_mounted_inside_later(self, docker: Docker, home: Path) -> None:
        """A disk that is mounted in the directory after the mount has no map: a warning says so."""
        with mounted("-t", "tmpfs", "none", str(home)):
            subprocess.run(["mount", "--make-shared", home], check=True)
            make_tree(home, "dir mongodb 1000:1001", "dir mongodb/disk 1000:1001")
            docker.created("mongo", **MINE, path=f"{home}/mongodb")
            place = docker.mounted("mongo")
            assert docker.status("mongo")["warnings"] == []
            with mounted("-t", "tmpfs", "-o", "uid=1000,gid=1001", "none", f"{home}/mongodb/disk"):
                (warning,) = docker.status("mongo")["warnings"]
            docker.remove("mongo")
            assert warning.startswith(f"{place}/disk was mounted later: in it, containers see the host's ids")

    def test_remove_and_restore(self, docker: Docker, driver: Driver, home: Path, host: Host) -> None:
        """Remove takes the mount away; restore brings the volume back with the same numbers on both sides."""
        docker.created("mongo", **MINE)
        place = docker.mounted("mongo")
        make_tree(place, "file mine 184:998")
        docker.remove("mongo")
        assert [mount.point for mount in mount_table() if mount.point.startswith(str(place))] == []
        driver.restore("mongo", entry=None, new_name=None, deadline=soon())
        assert owner(docker.mounted("mongo") / "mine") == (184, 998)
        assert owner(host.data("mongo") / "mine") == (1000, 1001)


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"host_uid": "1000"},
                "option host_uid says whose on the host the files of the container's uid are (give uid, too)",
            ),
            ({"gid": "1", "host_uid": "1000"}, "give uid, too"),
            ({"uid": "1", "host_uid": "0"}, "could make programs that run as the host's root"),
            ({"uid": "1", "host_uid": "-1"}, "is not a number from 0 to"),
            ({"uid": "1", "host_uid": "me"}, "give the number"),
        ],
    )
    def test_malformed(self, driver: Driver, options: dict[str, str], message: str) -> None:
        """An option that says nothing, and root on the host, are refused in words."""
        with pytest.raises(Invalid) as refused:
            driver.create("mongo", options, soon())
        assert message in str(refused.value)

    def test_a_file_system_without(self, docker: Docker, home: Path, host: Host) -> None:
        """Where the file system cannot have idmapped mounts, Create says so and leaves nothing."""
        (home / "ram").mkdir()
        with mounted("-t", "ramfs", "none", f"{home}/ram"):
            for path in (f"{home}/ram", f"{home}/ram/new"):
                answer = docker.create("mongo", **MINE, path=path)
                assert (answer.status, "ext4, XFS, btrfs and tmpfs can" in answer.error) == (403, True)
            assert os.listdir(home / "ram") == []
        assert (docker.names(), host.left_in_volumes()) == ([], [])

    def test_the_managed_plugin(self, host: Host) -> None:
        """The managed plugin refuses them at Create and in apply, since no engine would see its mounts."""
        known = host.environ["HOSTPREP_KNOWN_ROOTS"]
        driver = Driver.open(Settings(root=str(host.root), known_roots=known, managed=True), create=True)
        driver.create("mongo", {"uid": "184"}, soon())
        for refused in (
            lambda: driver.create("other", MINE, soon()),
            lambda: driver.apply("mongo", {"host_uid": "1000"}, (), soon()),
        ):
            with pytest.raises(NotAllowed, match="the engine would not see a mount"):
                refused()


class TestImport:
    def test_moved_here(self, docker: Docker, driver: Driver, home: Path, host: Host) -> None:
        """A directory that import moves here is the host's user's on disk, and the container's in its mount."""
        make_tree(host.srv.parent, "dir old 0:0", "dir old/db 33:33", "file old/db/a 33:33")
        from_directory(driver, "mongo", f"{host.srv.parent}/old/db", MINE, soon(), dry_run=False)
        place = docker.mounted("mongo")
        assert (owner(place / "a"), owner(host.data("mongo") / "a")) == ((184, 998), (1000, 1001))

    def test_where_it_cannot_be(self, driver: Driver, home: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no mount can be made, import leaves the directory where it is, and a dry run says so, too."""
        make_tree(host.srv.parent, "dir old 0:0", "dir old/db 33:33")
        monkeypatch.setattr(linux, "SYS_MOUNT_SETATTR", 9999)
        for dry_run in (True, False):
            with pytest.raises(NotAllowed, match="Linux 5.12"):
                from_directory(driver, "mongo", f"{host.srv.parent}/old/db", MINE, soon(), dry_run=dry_run)
        assert owner(host.srv.parent / "old" / "db") == (33, 33)
        assert host.left_in_volumes() == []


class TestApply:
    def test_taken_and_given_back(self, docker: Docker, driver: Driver, home: Path, host: Host) -> None:
        """apply changes whose the files are on disk, and with --unset they are the container's number's again."""
        docker.created("mongo", uid="184", gid="998")
        make_tree(docker.mounted("mongo"), "file mine 184:998")
        driver.apply("mongo", {"host_uid": "1000"}, (), soon())
        place = docker.mounted("mongo")
        assert owners(place / "mine", host.data("mongo") / "mine") == [(184, 998), (1000, 998)]
        driver.apply("mongo", {"host_uid": "1005"}, (), soon())
        docker.mounted("mongo")
        assert owners(place / "mine", host.data("mongo") / "mine") == [(184, 998), (1005, 998)]
        driver.apply("mongo", {}, ("host_uid",), soon())
        assert docker.mounted("mongo") == host.data("mongo")
        assert owner(host.data("mongo") / "mine") == (184, 998)

    def test_a_group_that_is_not_declared_any_more(
        self, docker: Docker, driver: Driver, home: Path, host: Host
    ) -> None:
        """No mount with the map from before stays, whoever owns the directory, of which alone the map is seen."""
        docker.created("mongo", **MINE)
        place = docker.mounted("mongo")
        driver.apply("mongo", {}, ("gid", "host_gid"), soon())
        os.chown(host.data("mongo"), 1000, 5)
        make_tree(host.data("mongo"), "file mine 1000:1001")
        docker.mounted("mongo")
        assert owners(place, place / "mine") == [(184, 5), (184, 1001)]

    def test_where_it_cannot_be(self, docker: Docker, driver: Driver, home: Path) -> None:
        """apply refuses what Create would refuse, and changes nothing."""
        (home / "ram").mkdir()
        with mounted("-t", "ramfs", "none", f"{home}/ram"):
            docker.created("mongo", uid="184", path=f"{home}/ram")
            with pytest.raises(NotAllowed, match="ext4, XFS, btrfs and tmpfs can"):
                driver.apply("mongo", {"host_uid": "1000"}, (), soon())
            assert dict(docker.status("mongo")["options"]) == {"uid": "184", "path": f"{home}/ram"}


class TestOneDirectory:
    """Several volumes on one directory, each for containers of another user."""

    def test_shared(self, docker: Docker, home: Path) -> None:
        """Two volumes whose host's ids agree have one directory: in each the files are its own user's."""
        docker.created("mongo", **MINE, path=f"{home}/mongodb", mode="0750")
        docker.created("backup", uid="200", host_uid="1000", gid="1001", path=f"{home}/mongodb", mode="0750")
        first, second = docker.mounted("mongo"), docker.mounted("backup")
        make_tree(first, "file data 184:998")
        assert owners(first / "data", second / "data", home / "mongodb" / "data") == [
            (184, 998),
            (200, 1001),
            (1000, 1001),
        ]
        for name in ("mongo", "backup"):
            docker.mounted(name)
            assert docker.status(name)["ready"] is True
        assert (owner(home / "mongodb"), mode(home / "mongodb")) == ((1000, 1001), "0750")

    def test_removed_one_by_one(self, docker: Docker, driver: Driver, home: Path) -> None:
        """hostprep's own mounts of the directory are nobody who uses it, so rm refuses neither volume."""
        for name, uid in (("mongo", "184"), ("backup", "200")):
            docker.created(name, **MINE | {"uid": uid}, path=f"{home}/mongodb")
            docker.mounted(name)
        assert [driver.users(name) for name in ("mongo", "backup")] == [[], []]

    @pytest.mark.parametrize(
        "other", [{"host_uid": "1002"}, {"mode": "0700"}, {"label": "etc_t"}, {"path": "inner"}, {"host_gid": ""}]
    )
    def test_not_shared(self, docker: Docker, home: Path, other: dict[str, str]) -> None:
        """Where they would want it to be another on disk, the second is refused, by the first one's name."""
        (home / "mongodb" / "inner").mkdir()
        docker.created("mongo", **MINE, path=f"{home}/mongodb")
        options = MINE | {"uid": "200", "path": f"{home}/mongodb"} | other
        if other.get("path"):
            options["path"] = f"{home}/mongodb/inner"
        answer = docker.create("backup", **{key: value for key, value in options.items() if value})
        assert (answer.status, "volume mongo's" in answer.error) == (409, True)

    def test_two_that_want_the_same(self, docker: Docker, home: Path) -> None:
        """Without host_uid or host_gid, two volumes have no directory together."""
        docker.created("mongo", uid="1000", path=f"{home}/mongodb")
        assert docker.create("backup", uid="1000", path=f"{home}/mongodb").status == 409

    def test_apply_in_one(self, docker: Docker, driver: Driver, home: Path) -> None:
        """apply refuses what the other volume of the directory would undo."""
        docker.created("mongo", **MINE, path=f"{home}/mongodb")
        docker.created("backup", **MINE | {"uid": "200"}, path=f"{home}/mongodb")
        with pytest.raises(Conflict, match="volume mongo's"):
            driver.apply("backup", {"mode": "0700"}, (), soon())
        driver.apply("backup", {"uid": "201"}, (), soon())
        assert owner(docker.mounted("backup")) == (201, 998)

    def test_kept(self, docker: Docker, driver: Driver, home: Path) -> None:
        """A volume that the engine is to forget, and record anew, comes back beside the other one of its directory."""
        docker.created("mongo", **MINE, path=f"{home}/mongodb")
        docker.created("backup", **MINE | {"uid": "200"}, path=f"{home}/mongodb")
        with driver.kept("backup", soon()):
            docker.remove("backup")
        assert sorted(docker.names()) == ["backup", "mongo"]
