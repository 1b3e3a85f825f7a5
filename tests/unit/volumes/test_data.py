"""A volume's data is what it was: a disk that is not mounted, or another directory in its place, is never prepared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.doctor.diagnose import diagnose
from hostprep.errors import Conflict, NotReady, OtherData
from hostprep.volumes.driver import Driver
from hostprep.volumes.record import WITHIN
from tests.support.commands import fails, succeeds
from tests.support.disks import KINDS, Disk
from tests.support.fixtures import Command, OpenDriver
from tests.support.host import Docker, Host, mode, mounted, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998", "mode": "0750"}


@pytest.fixture
def images(nothing_left: None, tmp_path: Path) -> Iterator[Path]:
    images = tmp_path / "images"
    images.mkdir()
    with mounted("-t", "tmpfs", "none", str(images)):
        yield images


@pytest.fixture
def point(host: Host) -> Path:
    """A mount point below the prefix."""
    point = host.srv / "disk"
    point.mkdir(mode=0o755)
    return point


def known(host: Host, name: str) -> str | None:
    """What its record says that the data is."""
    found = json.loads(host.record(name).read_text()).get("data")
    assert found is None or isinstance(found, str)
    return found


def refused(docker: Docker, name: str, *words: str) -> None:
    """Mount says why it answers nothing, Status likewise, and Get says that the volume is there."""
    answer = docker.mount(name)
    assert (answer.status, "Mountpoint" in answer.body) == (500, False)
    status = docker.status(name)
    assert (status["ready"], status["uid"], status["drift"]) == (False, None, [])
    for word in (f"the data of volume {name} is not there: ", *words, f"hostprep apply {name} --accept-data"):
        assert word in answer.error
        assert any(word in warning for warning in status["warnings"])


class TestPath:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_mount_point(self, host: Host, images: Path, point: Path, kind: str) -> None:
        """Of a `path` that is a disk's mount point, the bare directory is not prepared; mounted again, it is ready."""
        disk = Disk(images, kind)
        server = host.serve()
        with disk.mounted(point):
            assert server("Create", Name="mongo", Opts={"path": str(point), **MONGO}).status == 200
            assert server("Mount", Name="mongo", ID="1").body["Mountpoint"] == str(point)
            (point / "file").write_text("precious")

        answer = server("Mount", Name="mongo", ID="2")
        status = server("Get", Name="mongo").body["Volume"]["Status"]
        assert server("Unmount", Name="mongo", ID="1").status == 200

        assert (answer.status, status["ready"]) == (500, False)
        for said in (answer.error, *status["warnings"]):
            assert said.startswith(
                f"the data of volume mongo is not there: {point} is on another file system than before "
                "(is its disk mounted? If this is its data from now on: hostprep apply mongo --accept-data)"
            )
        assert (owner(point), mode(point), os.listdir(point)) == ((0, 0), "0755", [])
        with disk.mounted(point):
            assert server("Mount", Name="mongo", ID="3").body["Mountpoint"] == str(point)
            assert server("Get", Name="mongo").body["Volume"]["Status"]["ready"] is True
            assert (point / "file").read_text() == "precious"
        assert server.terminate() == 0

    def test_below_a_mount_point(self, docker: Docker, host: Host, images: Path, point: Path) -> None:
        """A directory of the same name below the bare mount point is not taken for the one on the disk."""
        with Disk(images).mounted(point):
            docker.created("mongo", path=f"{point}/db", **MONGO)
            docker.mounted("mongo")
        refused_before = docker.mount("mongo").error
        make_tree(point, "dir db")
        refused(docker, "mongo", f"{point}/db is on another file system than before")
        assert "does not exist" in refused_before
        assert owner(point / "db") == (0, 0)

    def test_another_disk(self, docker: Docker, images: Path, point: Path) -> None:
        """Another disk of the same kind at the mount point is not taken for the first."""
        for name in ("one", "two"):
            (images / name).mkdir()
        one, two = Disk(images / "one"), Disk(images / "two")
        with one.mounted(point):
            docker.created("mongo", path=str(point), **MONGO)
        with two.mounted(point):
            refused(docker, "mongo", f"{point} is on another file system than before")
            assert owner(point) == (0, 0)
        with one.mounted(point):
            docker.mounted("mongo")

    def test_a_bind_mount(self, docker: Docker, host: Host, point: Path) -> None:
        """A bind mount of the same file system that is missing shows by the inode."""
        make_tree(host.srv.parent, "dir elsewhere")
        with mounted("--bind", str(host.srv.parent / "elsewhere"), str(point)):
            docker.created("mongo", path=str(point), **MONGO)
            docker.mounted("mongo")
        refused(docker, "mongo", f"{point} is another directory than before")
        assert owner(point) == (0, 0)

    @pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
    def test_what_has_no_number(self, docker: Docker, host: Host, point: Path, kind: str) -> None:
        """Where neither number outlives a mount the kind does: made anew it is accepted, missing it is refused."""
        above = host.srv.parent
        make_tree(above, "dir lower", "dir upper", "dir work")
        layers = f"lowerdir={above}/lower,upperdir={above}/upper,workdir={above}/work"
        options = ("-o", layers) if kind == "overlay" else ()
        for _ in range(2):
            with mounted("-t", kind, *options, "none", str(point)):
                docker.create("mongo", path=str(point), **MONGO)
                docker.mounted("mongo")
        refused(docker, "mongo", f"{point} is on another file system than before")

    def test_made_at_create(self, docker: Docker, host: Host) -> None:
        """Of a directory that Create makes, the first Mount records what it is; no later one writes anything."""
        docker.created("mongo", path=f"{host.srv}/db", **MONGO)
        assert known(host, "mongo") is None
        docker.mounted("mongo")
        assert str(known(host, "mongo")).endswith(f":{os.stat(host.srv / 'db').st_ino}")
        before = os.stat(host.record("mongo"))
        docker.mounted("mongo")
        docker.unmount("mongo")
        assert os.stat(host.record("mongo")) == before

    def test_adopted_at_create(self, docker: Docker, host: Host) -> None:
        """Of a directory that Create adopts, it records what it is."""
        make_tree(host.srv, "dir db")
        docker.created("mongo", path=f"{host.srv}/db", **MONGO)
        assert str(known(host, "mongo")).endswith(f":{os.stat(host.srv / 'db').st_ino}")

    def test_a_backup(self, docker: Docker, hostprep: Command, host: Host) -> None:
        """A directory that a backup brought back is accepted once it is said to be the data; owners follow then."""
        make_tree(host.srv, "dir db", "file db/file 5:5 600 precious")
        docker.created("mongo", path=f"{host.srv}/db", recurse="mismatch", **MONGO)
        (host.srv / "db").rename(host.srv / "lost")
        subprocess.run(["cp", "-a", "--no-preserve=ownership", host.srv / "lost", host.srv / "db"], check=True)
        refused(docker, "mongo", f"{host.srv}/db is another directory than before")
        fails(hostprep("apply", "mongo", "-o", "mode=0700"), "is another directory than before")

        assert succeeds(hostprep("apply", "mongo", "--accept-data")) == "mongo\n"

        assert docker.mounted("mongo") == host.srv / "db"
        assert owner(host.srv / "db/file") == (184, 998)
        assert docker.status("mongo")["ready"] is True
        (host.srv / "db").rename(host.srv / "again")
        (host.srv / "lost").rename(host.srv / "db")
        refused(docker, "mongo", f"{host.srv}/db is another directory than before")

    def test_another_volumes(self, driver: Driver, host: Host) -> None:
        """What is mounted there and is another volume's is not accepted: each would take it from the other."""
        for name, uid in (("mongo", "184"), ("redis", "5")):
            driver.create(name, {"uid": uid, "path": f"{host.srv}/{name}"}, soon())
            driver.mount(name, soon())
        before = known(host, "redis")
        with mounted("--bind", f"{host.srv}/mongo", f"{host.srv}/redis"):
            with pytest.raises(OtherData):
                driver.mount("redis", soon())
            with pytest.raises(Conflict, match=f"{host.srv}/mongo, which is volume mongo's"):
                driver.apply("redis", {}, (), soon(), accept_data=True)
        assert (known(host, "redis"), owner(host.srv / "mongo")[0]) == (before, 184)

    def test_nothing_to_accept(self, driver: Driver, host: Host) -> None:
        """What is missing cannot be accepted: the record stays as it was."""
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())
        driver.mount("mongo", soon())
        (host.srv / "db").rmdir()
        before = host.record("mongo").read_bytes()
        with pytest.raises(NotReady, match="does not exist"):
            driver.apply("mongo", {}, (), soon(), accept_data=True)
        assert host.record("mongo").read_bytes() == before

    def test_removed_and_restored(self, docker: Docker, driver: Driver, host: Host) -> None:
        """The trash, and restore under any name, keep what the data is; Create takes what is there."""
        make_tree(host.srv, "dir db")
        docker.created("mongo", path=f"{host.srv}/db")
        assert docker.remove("mongo").status == 200
        (host.srv / "db").rename(host.srv / "moved")
        make_tree(host.srv, "dir db")
        driver.restore("mongo", entry=None, new_name="again", deadline=soon())
        refused(docker, "again", f"{host.srv}/db is another directory than before")
        assert docker.remove("again").status == 200
        docker.created("mongo", path=f"{host.srv}/db")
        docker.mounted("mongo")

    def test_doctor(self, docker: Docker, driver: Driver, host: Host) -> None:
        """doctor says so, and does not tell to make a directory."""
        make_tree(host.srv, "dir db")
        docker.created("mongo", path=f"{host.srv}/db")
        (host.srv / "db").rename(host.srv / "moved")
        make_tree(host.srv, "dir db")
        (finding,) = diagnose(driver, "mongo", []).findings
        assert (finding.check, finding.remedy) == ("directory", None)
        assert "is another directory than before" in finding.what
        assert "--accept-data" in finding.wanted


class TestOwn:
    def test_a_disk(self, docker: Docker, host: Host, images: Path) -> None:
        """Of a disk that is mounted on `_data`, the bare directory is not prepared, nor another disk's."""
        disk = Disk(images)
        data = docker.created("mongo", **MONGO)
        with disk.mounted(data):
            refused(docker, "mongo", f"another file system is mounted at {data} now")
            accept(host, "mongo")
            docker.mounted("mongo")
        data.chmod(0o700)
        refused(docker, "mongo", f"nothing is mounted at {data} any more")
        assert mode(data) == "0700"
        with mounted("-t", "tmpfs", "none", str(data)):
            refused(docker, "mongo", f"{data} is on another file system than before")
        with disk.mounted(data):
            docker.mounted("mongo")

    def test_a_bind_mount(self, docker: Docker, host: Host) -> None:
        """A bind mount of the same file system counts as a mount."""
        make_tree(host.srv, "dir elsewhere")
        data = docker.created("mongo")
        with mounted("--bind", str(host.srv / "elsewhere"), str(data)):
            accept(host, "mongo")
            docker.mounted("mongo")
        refused(docker, "mongo", f"nothing is mounted at {data} any more")

    def test_of_an_older_version(self, docker: Docker, host: Host, images: Path) -> None:
        """A record that does not say what the data is learns a disk when it is mounted, and nothing before."""
        data = docker.created("mongo", **MONGO)
        record = json.loads(host.record("mongo").read_text())
        assert record.pop("data") == WITHIN
        host.record("mongo").write_text(json.dumps(record))
        docker.mounted("mongo")
        assert known(host, "mongo") is None
        with Disk(images).mounted(data):
            docker.mounted("mongo")
            assert str(known(host, "mongo")).startswith("ext4:")
        refused(docker, "mongo", f"nothing is mounted at {data} any more")

    def test_a_backup_of_the_root(self, open_driver: OpenDriver, host: Host, images: Path) -> None:
        """The whole root on another file system, as from a backup: each volume of its own is ready as before."""
        open_driver().create("mongo", MONGO, soon())
        host.root.rename(host.root.with_name("lost"))
        host.root.mkdir(mode=0o700)
        with Disk(images).mounted(host.root):
            (host.root / "lost+found").rmdir()
            subprocess.run(["cp", "-a", f"{host.root.with_name('lost')}/.", host.root], check=True)
            assert open_driver().mount("mongo", soon()) == str(host.data("mongo"))

    def test_a_directory_of_the_backup(self, docker: Docker, host: Host) -> None:
        """A `_data` that root has put back from a backup is the volume's."""
        data = docker.created("mongo", **MONGO)
        data.rename(data.with_name("lost"))
        shutil.copytree(data.with_name("lost"), data)
        docker.mounted("mongo")

    def test_a_sub_volume(self, open_driver: OpenDriver, host: Host, images: Path) -> None:
        """A `_data` that is a btrfs sub-volume, and a snapshot of the root in its place, are no mounts."""
        host.root.mkdir(mode=0o700)
        with Disk(images, "btrfs").mounted(host.root):
            host.root.chmod(0o700)
            btrfs("create", host.root / "it")
            (host.root / "it").chmod(0o700)
            there = {"HOSTPREP_ROOT": f"{host.root}/it"}
            open_driver(**there).create("mongo", {}, soon())
            data = host.root / "it/volumes/mongo/_data"
            data.rmdir()
            btrfs("create", data)
            open_driver(**there).mount("mongo", soon())
            data.chmod(0o755)
            btrfs("snapshot", host.root / "it", host.root / "then")
            (host.root / "it").rename(host.root / "before")
            (host.root / "then").rename(host.root / "it")
            open_driver(**there).mount("mongo", soon())

    def test_imported(self, docker: Docker, hostprep: Command, host: Host) -> None:
        """A directory that import moved here is within the volume."""
        make_tree(host.srv, "dir db")
        succeeds(hostprep("import", "--from", f"{host.srv}/db", "mongo"))
        assert known(host, "mongo") == WITHIN
        docker.mounted("mongo")

    @pytest.mark.parametrize("new", ["mongo", "other"])
    def test_restored(self, docker: Docker, driver: Driver, host: Host, new: str) -> None:
        """A restored volume is as it was."""
        docker.created("mongo", **MONGO)
        assert docker.remove("mongo").status == 200
        driver.restore("mongo", entry=None, new_name=new, deadline=soon())
        assert known(host, new) == WITHIN
        docker.mounted(new)

    def test_retained(self, docker: Docker, driver: Driver, host: Host, images: Path) -> None:
        """Retained data on a disk that is missing is not taken up; it stays retained until the disk is there."""
        disk = Disk(images)
        data = docker.created("mongo", on_remove="retain", **MONGO)
        with disk.mounted(data):
            accept(host, "mongo")
            assert docker.remove("mongo").status == 200
        answer = docker.create("mongo")
        assert answer.status == 500
        assert f"nothing is mounted at {data} any more" in answer.error
        assert "hostprep rm --retained mongo, then create it anew" in answer.error
        assert [each["name"] for each in driver.retained_volumes()] == ["mongo"]
        with disk.mounted(data):
            docker.created("mongo")
            docker.mounted("mongo")
            assert docker.remove("mongo").status == 200
        driver.discard_retained("mongo", soon())
        docker.created("mongo")
        docker.mounted("mongo")


def accept(host: Host, name: str) -> None:
    """Somebody says that what is there now is the volume's data."""
    assert host.run("apply", name, "--accept-data", "--no-wait").code == 0


def btrfs(what: str, *paths: Path) -> None:
    subprocess.run(["btrfs", "-q", "subvolume", what, *paths], check=True)
