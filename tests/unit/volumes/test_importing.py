"""`hostprep import`: local-persist's volumes by path, and directories moved here, data and all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.errors import Conflict, Invalid, NotAllowed, NotReady
from hostprep.host.system import is_engine_volume
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from hostprep.volumes.importing import from_directory, read_local_persist
from tests.support.commands import fails, succeeds
from tests.support.fixtures import Command
from tests.support.host import Host, mounted, owner, soon
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = ("-o", "uid=184", "-o", "gid=998")


class TestLocalPersist:
    @pytest.fixture
    def state(self, host: Host) -> str:
        """What local-persist 1.3.0 writes, of two directories of one volume each."""
        make_tree(host.srv, "dir mongo 55:66", "file mongo/file 55:66", "dir redis 55:66")
        return self.write(host, mongo=f"{host.srv}/mongo", redis=f"{host.srv}/redis/")

    def write(self, host: Host, **state: str) -> str:
        file = host.srv.parent / "local-persist.json"
        file.write_text(json.dumps({"state": state}, separators=(",", ":")))
        return str(file)

    def test_all(self, hostprep: Command, host: Host, state: str) -> None:
        """Each becomes a volume by path with the options given, in place, and what is in it stays as it is."""
        out = succeeds(hostprep("import", "--local-persist", state, *MONGO))
        assert out.splitlines() == [
            f"mongo: imported {host.srv}/mongo",
            f"redis: imported {host.srv}/redis",
        ]
        status = hostprep("status", "mongo", "--json").json
        assert status["mountpoint"] == f"{host.srv}/mongo"
        assert status["status"]["options"] == {"uid": "184", "gid": "998", "path": f"{host.srv}/mongo"}
        assert owner(host.srv / "redis") == (184, 998)
        assert owner(host.srv / "mongo" / "file") == (55, 66)

    def test_contents_where_asked(self, hostprep: Command, host: Host, state: str) -> None:
        """With recurse=mismatch the contents have followed when import ends, however long that takes."""
        arguments = ("import", "--local-persist", state, *MONGO, "-o", "recurse=mismatch")
        succeeds(hostprep(*arguments, HOSTPREP_PATIENCE="0"))
        assert set(owners(host.srv).values()) == {(184, 998)}

    def test_again(self, hostprep: Command, host: Host, state: str) -> None:
        """Once more is no error: what is there already, just so, is passed by in words."""
        succeeds(hostprep("import", "--local-persist", state))
        out = succeeds(hostprep("import", "--local-persist", state))
        assert out.count("skipped: it exists already, with path") == 2

    def test_dry_run(self, hostprep: Command, host: Host, state: str) -> None:
        """A dry run tells the plan and changes nothing."""
        succeeds(hostprep("create", "other"))
        before = sorted(host.root.rglob("*"))
        out = succeeds(hostprep("import", "--local-persist", state, *MONGO, "--dry-run"))
        assert out.splitlines()[0] == f"mongo: would import {host.srv}/mongo"
        assert owner(host.srv / "mongo") == (55, 66)
        assert sorted(host.root.rglob("*")) == before

    def test_a_dry_run_makes_no_root(self, hostprep: Command, host: Host, state: str) -> None:
        """Where hostprep has no root yet, a dry run makes none, and says what does."""
        fails(hostprep("import", "--local-persist", state, "--dry-run"), "does not exist", "hostprep create or serve")
        assert not host.root.exists()

    @pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["done", "planned"])
    def test_what_cannot_be(self, hostprep: Command, host: Host, more: list[str]) -> None:
        """What is in the way of one is told, is in the way of no other, and makes the exit status 1."""
        make_tree(host.srv, "dir db", "dir db/below", "dir good", "file file", "dir taken", "symlink link db")
        os.mkdir(host.srv.parent / "outside")
        succeeds(hostprep("create", "exists", "-o", "uid=1"))
        make_tree(host.srv, "dir docker/volumes", "dir docker/x", "file docker/volumes/metadata.db")
        succeeds(hostprep("create", "owner", "-o", f"path={host.srv}/taken"))
        wrong = {
            "below": (f"{host.srv}/db/below", "contains or lies in"),
            "dots": (f"{host.srv}/good/../db", "normalized"),
            "exists": (f"{host.srv}/good", "exists with other options: uid is 1"),
            "engine": (f"{host.srv}/docker/x", "where an engine keeps its data"),
            "file": (f"{host.srv}/file", "is a file"),
            "link": (f"{host.srv}/link", "is a symlink"),
            "missing": (f"{host.srv}/none", "does not exist (is its disk mounted?)"),
            "outside": (f"{host.srv.parent}/outside", "HOSTPREP_ALLOW"),
            "relative": ("data", "absolute"),
            "taken2": (f"{host.srv}/taken", "which is volume owner's"),
            "_x": (f"{host.srv}/good", "is not valid"),
        }
        state = self.write(host, aa=f"{host.srv}/db", **{name: path for name, (path, _) in wrong.items()})
        done = hostprep("import", "--local-persist", state, *more)
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith(f"hostprep: {len(wrong)} of {len(wrong) + 1} volumes ")
        lines = {line.split(": ")[0]: line for line in done.out.splitlines()}
        assert "import" in lines.pop("aa")
        assert lines.keys() == wrong.keys()
        for name, (_, words) in wrong.items():
            assert lines[name].startswith(f"{name}: skipped: ")
            assert words in lines[name]
        assert not (host.srv / "none").exists()
        assert host.left_in_volumes() == (["exists", "owner"] if more else ["aa", "exists", "owner"])

    @pytest.mark.parametrize("option", ["path=/srv/x", "mountpoint=/srv/x", "uid=x", "colour=red"])
    def test_wrong_options(self, hostprep: Command, host: Host, state: str, option: str) -> None:
        """An option that is wrong, or the path that the file says, is refused before anything is touched."""
        fails(hostprep("import", "--local-persist", state, "-o", option), option.split("=")[0])
        assert host.left_in_volumes() == []

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            '{"state": []}',
            '{"state": {"a": 1}}',
            '{"state": {}, "more": 1}',
            '{"state": {"a": "/a", "a": "/b"}}',
            "[" * 100_000,
            "\xff",
        ],
        ids=["empty", "no-state", "array", "state-array", "number", "more", "twice", "deep", "bytes"],
    )
    def test_another_file(self, tmp_path: Path, text: str) -> None:
        """What local-persist cannot have written is refused as a whole."""
        (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(Invalid, match="is not local-persist's"):
            read_local_persist(str(tmp_path / "x.json"))

    def test_none(self, tmp_path: Path) -> None:
        """A state of null, as Go writes a map that was never made, is no volumes."""
        (tmp_path / "x.json").write_text('{"state":null}')
        assert read_local_persist(str(tmp_path / "x.json")) == {}

    def test_no_file(self, hostprep: Command, tmp_path: Path) -> None:
        """A file that is not there, or is none, is told in one line."""
        fails(hostprep("import", "--local-persist", f"{tmp_path}/x"), "x: No such file")
        os.mkfifo(tmp_path / "fifo")
        fails(hostprep("import", "--local-persist", f"{tmp_path}/fifo"), "is not a file")


class TestFrom:
    @pytest.fixture
    def source(self, host: Host) -> Path:
        """The data of one of Docker's own volumes."""
        volumes = host.srv.parent / "docker" / "volumes"
        make_tree(
            host.srv.parent, "dir docker/volumes/db/_data 0:0 2711", "file docker/volumes/db/_data/file 5:6 640 x"
        )
        return volumes / "db" / "_data"

    def test_moved(self, hostprep: Command, host: Host, source: Path) -> None:
        """The very directory becomes the volume's, data and all, and is made ready as declared."""
        inode = source.stat().st_ino
        out = succeeds(hostprep("import", "--from", f"{source}/", "mongo", *MONGO))
        assert out == f"mongo: moved {source} to {host.data('mongo')}\n"
        assert host.data("mongo").stat().st_ino == inode
        assert not source.exists()
        assert (host.data("mongo") / "file").read_text() == "x"
        assert {owner(host.data("mongo")), *owners(host.data("mongo")).values()} == {(184, 998)}
        assert hostprep("status", "mongo", "--json").json["status"]["ready"] is True

    def test_what_is_not_declared(self, hostprep: Command, host: Host, source: Path) -> None:
        """Owner and mode that are not declared stay as they are."""
        os.chown(source, 55, 66)
        os.chmod(source, 0o2711)
        succeeds(hostprep("import", "--from", str(source), "mongo"))
        assert (owner(host.data("mongo")), host.data("mongo").stat().st_mode & 0o7777) == ((55, 66), 0o2711)
        assert owner(host.data("mongo") / "file") == (5, 6)

    def test_dry_run(self, hostprep: Command, host: Host, source: Path) -> None:
        """A dry run says where it would go and what would change, and changes nothing."""
        succeeds(hostprep("create", "other"))
        before = sorted(host.root.rglob("*"))
        out = succeeds(hostprep("import", "--from", str(source), "mongo", *MONGO, "--dry-run"))
        assert out.splitlines()[0] == f"mongo: would move {source} to {host.data('mongo')}"
        assert "would change owner" in out
        assert sorted(host.root.rglob("*")) == before
        assert owner(source) == (0, 0)

    def test_hard_links_and_devices(self, hostprep: Command, host: Host, source: Path) -> None:
        """Files of others that were linked into it when it was elsewhere, and devices, are left alone and reported."""
        make_tree(host.srv, "file secret 0:0 600")
        (source / "linked").hardlink_to(host.srv / "secret")
        make_tree(source, "device null 0:0")
        succeeds(hostprep("import", "--from", str(source), "mongo", *MONGO))
        assert owner(host.srv / "secret") == (0, 0)
        assert owner(host.data("mongo") / "null") == (0, 0)
        assert owner(host.data("mongo") / "file") == (184, 998)
        warnings = " ".join(hostprep("status", "mongo", "--json").json["status"]["warnings"])
        assert "linked" in warnings

    def test_removed_and_restored(self, hostprep: Command, host: Host, source: Path) -> None:
        """From then on it is a volume like any other: to the trash with its data, and back."""
        succeeds(hostprep("import", "--from", str(source), "mongo"))
        succeeds(hostprep("rm", "mongo"))
        succeeds(hostprep("restore", "mongo"))
        assert (host.data("mongo") / "file").read_text() == "x"
        assert json.loads(host.record("mongo").read_text())["imported"] is True

    def test_an_existing_volume(self, hostprep: Command, host: Host, source: Path) -> None:
        """A name that is taken, by a retained volume too, is refused, and the directory stays."""
        for options in ([], ["-o", "on_remove=retain"]):
            succeeds(hostprep("create", "mongo", *options))
            fails(hostprep("import", "--from", str(source), "mongo"), "a volume mongo exists")
            succeeds(hostprep("rm", "mongo"))
        fails(hostprep("import", "--from", str(source), "mongo"), "retained")
        assert (source / "file").exists()

    def test_a_volume_that_lost_its_data(self, hostprep: Command, host: Host, source: Path) -> None:
        """A volume that was not imported, and whose data is missing, is not filled up."""
        succeeds(hostprep("create", "mongo"))
        host.data("mongo").rmdir()
        fails(hostprep("import", "--from", str(source), "mongo"), "a volume mongo exists")

    def test_another_volumes_path(self, hostprep: Command, host: Host) -> None:
        """A directory that is a volume's by path, or contains one, is refused."""
        make_tree(host.srv, "dir db/below")
        succeeds(hostprep("create", "db", "-o", f"path={host.srv}/db/below"))
        for path in ("db", "db/below"):
            fails(hostprep("import", "--from", f"{host.srv}/{path}", "mongo"), "which is volume db's")

    def test_symlinks(self, hostprep: Command, host: Host, source: Path) -> None:
        """A symlink, itself or on the way, is refused."""
        (host.srv / "link").symlink_to(source)
        (host.srv / "volumes").symlink_to(source.parents[1])
        for path in ("link", "volumes/db/_data"):
            fails(hostprep("import", "--from", f"{host.srv}/{path}", "mongo"), "is a symlink")
        assert source.exists()

    def test_no_directory(self, hostprep: Command, host: Host) -> None:
        """What is missing, or a file, is refused in words, and no volume is left."""
        make_tree(host.srv, "file file")
        fails(hostprep("import", "--from", f"{host.srv}/none", "mongo"), "does not exist")
        fails(hostprep("import", "--from", f"{host.srv}/file", "mongo"), "is a file")
        assert host.left_in_volumes() == []

    def test_up_from_a_name(self, hostprep: Command, host: Host) -> None:
        """`..` behind a name, which may be a link's, is refused in words."""
        make_tree(host.srv, "dir b/db", "dir elsewhere/db", "dir elsewhere/y", "symlink b/link ../elsewhere/y")
        for more in ([], ["--dry-run"]):
            fails(hostprep("import", "--from", f"{host.srv}/b/link/../db", "mongo", *more), "write the directory's own")
        assert (host.srv / "b/db").exists()
        assert (host.srv / "elsewhere/db").exists()

    def test_an_engines_volume(self, hostprep: Command, host: Host) -> None:
        """Of an engine's data, wherever it is, the data of a volume can be taken over, and nothing else."""
        make_tree(host.srv, "dir docker/volumes/db/_data 5:5", "file docker/volumes/metadata.db", "dir docker/image")
        for path in ("docker", "docker/image", "docker/volumes", "docker/volumes/db"):
            fails(hostprep("import", "--from", f"{host.srv}/{path}", "mongo"), "where an engine keeps its data")
        succeeds(hostprep("import", "--from", f"{host.srv}/docker/volumes/db/_data", "mongo"))
        assert owner(host.data("mongo")) == (5, 5)

    def test_another_name_of_a_volumes_path(self, driver: Driver, host: Host) -> None:
        """A directory that is another volume's by another name, or holds it, is that volume's."""
        make_tree(host.srv, "dir a/db", "dir b")
        driver.create("mongo", {"path": f"{host.srv}/a/db"}, soon())
        with mounted("--bind", f"{host.srv}/a", f"{host.srv}/b"):
            with pytest.raises(Conflict, match="which is volume mongo's"):
                from_directory(driver, "other", f"{host.srv}/b/db", {}, soon(), dry_run=False)
        assert host.left_in_volumes() == ["mongo"]

    def test_redirectable(self, hostprep: Command, host: Host) -> None:
        """Below a directory that somebody else can write nothing is taken over: it could be another by then."""
        make_tree(host.srv, "dir home 1000:1000", "dir home/db")
        fails(hostprep("import", "--from", f"{host.srv}/home/db", "mongo"), "somebody other than root")

    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize(
        "path", ["/", "/etc", "/usr/lib", "/home", "/var/log", "/var/lib/docker", "/var/lib/docker/overlay2/x"]
    )
    def test_system_directories(self, driver: Driver, path: str) -> None:
        """System directories and an engine's own are refused."""
        with pytest.raises((NotAllowed, Invalid)):
            from_directory(driver, "mongo", path, {}, soon(), dry_run=False)

    @pytest.mark.parametrize("engines", [False, True], ids=["anywhere", "as-if-an-engine's"])
    def test_hostpreps_own(
        self,
        driver: Driver,
        host: Host,
        monkeypatch: pytest.MonkeyPatch,
        engines: bool,  # noqa: FBT001
    ) -> None:
        """Neither hostprep's root, nor what is in it or contains it, becomes a volume, wherever the root is."""
        monkeypatch.setattr("hostprep.volumes.importing.is_engine_volume", lambda path: engines)
        driver.create("mongo", {}, soon())
        for path in (host.root, host.root.parent, host.data("mongo")):
            with pytest.raises(NotAllowed, match="is, contains or lies in"):
                from_directory(driver, "other", str(path), {}, soon(), dry_run=False)

    def test_engines_volumes(self) -> None:
        """Of an engine's directories only the data of its local volumes can be taken over."""
        assert is_engine_volume("/var/lib/docker/volumes/db/_data")
        assert is_engine_volume("/var/lib/containers/storage/volumes/db/_data")
        for other in ("volumes/db", "volumes/db/data", "volumes/_data", "volumes/a/b/_data", "overlay2/db/_data"):
            assert not is_engine_volume(f"/var/lib/docker/{other}")

    @pytest.fixture
    def tmpfs(self, host: Host) -> Iterator[Path]:
        (host.srv / "disk").mkdir()
        with mounted("-t", "tmpfs", "none", str(host.srv / "disk")):
            make_tree(host.srv / "disk", "dir db", "file db/file")
            yield host.srv / "disk"

    def test_another_file_system(self, hostprep: Command, host: Host, tmpfs: Path) -> None:
        """From another file system nothing is copied: it is refused with what to do, and no volume is left."""
        succeeds(hostprep("create", "other"))
        for more in ([], ["--dry-run"]):
            done = hostprep("import", "--from", f"{tmpfs}/db", "mongo", *more)
            fails(done, "not on one file system", "path", "cp -a")
        fails(hostprep("import", "--from", str(tmpfs), "mongo"), "is a mount point")
        assert (tmpfs / "db" / "file").exists()
        assert host.left_in_volumes() == ["other"]

    def test_another_mount(self, hostprep: Command, host: Host, source: Path) -> None:
        """A bind mount of the same file system is refused, as the plan says: rename(2) does not go across."""
        (host.srv / "bind").mkdir()
        succeeds(hostprep("create", "other"))
        with mounted("--bind", str(source.parents[1]), str(host.srv / "bind")):
            for more in ([], ["--dry-run"]):
                done = hostprep("import", "--from", f"{host.srv}/bind/db/_data", "mongo", *more)
                fails(done, "not on one file system")
        assert source.exists()

    def test_mounted_elsewhere(self, hostprep: Command, host: Host, source: Path) -> None:
        """A directory that is mounted somewhere, or in which something is, is in use."""
        (host.srv / "bind").mkdir()
        (source / "sub").mkdir()
        for what in (source, source / "sub"):
            with mounted("--bind", str(what), str(host.srv / "bind")):
                fails(hostprep("import", "--from", str(source), "mongo"), "is in use", f"mounted at {host.srv}/bind")
        with mounted("-t", "tmpfs", "none", str(source / "sub")):
            fails(hostprep("import", "--from", str(source), "mongo"), "is in use", "sub is a mount point")
        succeeds(hostprep("import", "--from", str(source), "mongo"))

    def test_a_running_container(self, hostprep: Command, host: Host, source: Path) -> None:
        """A directory that a process in a mount namespace of its own has mounted, as containers do, is in use."""
        (host.srv / "inside").mkdir()
        script = f"mount --bind {source} {host.srv}/inside && echo up && exec cat"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as container:
            assert container.stdout is not None
            assert container.stdout.readline() == b"up\n"
            fails(hostprep("import", "--from", str(source), "mongo"), "is in use", f"process {container.pid} has it")
            container.kill()
        assert source.exists()
        succeeds(hostprep("import", "--from", str(source), "mongo"))

    def test_in_a_chroot(self, driver: Driver, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the mount that the directory is on cannot be seen, it is refused: who uses it cannot be told."""
        monkeypatch.setattr("hostprep.host.mountinfo.mount_table", lambda process="self": [])
        with pytest.raises(NotAllowed, match="cannot be told"):
            from_directory(driver, "mongo", str(source), {}, soon(), dry_run=False)

    def test_where_it_cannot_be_told(self, driver: Driver, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the mounts of a process cannot be seen, nothing is moved, and the reason is said."""
        monkeypatch.setattr("hostprep.host.uses._hidden", lambda: "half of it is dark")
        with pytest.raises(NotAllowed, match="cannot be told: half of it is dark"):
            from_directory(driver, "mongo", str(source), {}, soon(), dry_run=False)
        assert source.exists()

    def test_options_of_the_local_driver(self, driver: Driver, host: Host) -> None:
        """A volume that Docker made with options (a disk, NFS, a quota) is refused: its data may be elsewhere."""
        make_tree(host.srv, "dir volumes/db/_data", "file volumes/db/opts.json")
        with pytest.raises(NotAllowed, match="options of Docker's local driver"):
            from_directory(driver, "mongo", f"{host.srv}/volumes/db/_data", {}, soon(), dry_run=False)

    def test_an_image_without_an_engine(self, driver: Driver, source: Path) -> None:
        """image is refused where no engine may be asked, as in Create, and nothing is moved."""
        with pytest.raises(NotAllowed, match="HOSTPREP_DOCKER_HOST"):
            from_directory(driver, "mongo", str(source), {"image": "mongo"}, soon(), dry_run=False)
        assert source.exists()

    def test_an_interrupted_one(self, hostprep: Command, host: Host, source: Path) -> None:
        """A volume whose data has not come yet says so at Mount; the same import completes it, another is refused."""
        succeeds(hostprep("import", "--from", str(source), "mongo", *MONGO))
        host.data("mongo").rename(source)
        driver = Driver.open(Settings.read(host.environ), create=False)
        with pytest.raises(NotReady, match="is not there"):
            driver.mount("mongo", soon())
        fails(hostprep("import", "--from", str(source), "mongo", "-o", "uid=5"), "was interrupted, with other options")
        succeeds(hostprep("import", "--from", str(source), "mongo", *MONGO))
        assert (host.data("mongo") / "file").read_text() == "x"

    def test_the_record_is_durable_first(self, driver: Driver, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The data moves by one rename, after the record and its name are on disk, and both directories follow."""
        steps: list[str] = []
        rename, fsync = os.rename, os.fsync

        def renamed(src: str, dst: str, **where: int) -> None:
            steps.append("data" if dst == "_data" else "volume")
            rename(src, dst, **where)

        def synced(fd: int) -> None:
            steps.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            fsync(fd)

        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(os, "fsync", synced)
        from_directory(driver, "mongo", str(source), {}, soon(), dry_run=False)
        assert steps == ["sync volume.json", "volume", "sync volumes", "data", "sync mongo", "sync db"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["import"],
        ["import", "mongo"],
        ["import", "--from", "/srv/db"],
        ["import", "--local-persist", "/x", "mongo"],
        ["import", "--local-persist", "/x", "--from", "/srv/db", "mongo"],
    ],
    ids=" ".join,
)
def test_usage(hostprep: Command, host: Host, arguments: list[str]) -> None:
    """Exactly one of --from DIR NAME and --local-persist FILE; else exit 2, and nothing is done."""
    done = hostprep(*arguments)
    assert (done.code, done.out) == (2, "")
    assert not host.root.exists()
