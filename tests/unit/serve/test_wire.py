"""The protocol, sentence by sentence, as an engine meets it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hostprep.serve.wire import MEDIA_TYPE, NoAnswer, create_app
from hostprep.volumes.driver import Driver
from tests.support.fixtures import OpenDriver
from tests.support.host import LABEL, Answer, Docker, Host, label, mode, mounted, owner

pytestmark = pytest.mark.root
OK = Answer(200, {"Err": ""})
VERBS = ["Create", "Get", "List", "Path", "Mount", "Unmount", "Remove", "Capabilities"]
NAMED = ["Create", "Get", "Path", "Mount", "Unmount", "Remove"]


class TestHandshake:
    def test_activate(self, docker: Docker) -> None:
        """Activate, with an empty body, says that this is a volume driver."""
        assert docker.ask("/Plugin.Activate", b"") == Answer(200, {"Implements": ["VolumeDriver"]})

    @pytest.mark.parametrize("scope", ["local", "global"])
    @pytest.mark.parametrize("body", [b"{}", b"", b"not json"])
    def test_capabilities(self, open_driver: OpenDriver, scope: str, body: bytes) -> None:
        """Capabilities answers the scope that is set, whatever its body is."""
        docker = Docker(create_app(open_driver(HOSTPREP_SCOPE=scope)).test_client())
        assert docker.ask("Capabilities", body) == Answer(200, {"Capabilities": {"Scope": scope}})

    def test_the_answers_type(self, driver: Driver) -> None:
        """Every answer, refusals too, has the media type of the protocol."""
        client = create_app(driver).test_client()
        for path in ["/Plugin.Activate", "/VolumeDriver.List", "/VolumeDriver.Path", "/nowhere"]:
            assert client.post(path, data=b"{}").mimetype == MEDIA_TYPE


class TestBodies:
    def test_without_a_content_type(self, docker: Docker) -> None:
        """Docker sends JSON without saying so; the test client does the same."""
        assert docker("Create", Name="mongo", Opts=None) == OK

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
    def test_with_another_content_type(self, driver: Driver, kind: str) -> None:
        """The Content-Type does not matter."""
        body = json.dumps({"Name": "mongo"})
        assert (
            create_app(driver).test_client().post("/VolumeDriver.Create", data=body, content_type=kind).status_code
            == 200
        )

    def test_with_a_line_end(self, docker: Docker) -> None:
        """Docker ends its JSON with a line end."""
        assert docker.ask("Create", b'{"Name":"mongo","Opts":null}\n') == OK

    @pytest.mark.parametrize("options", [{}, {"Opts": None}, {"Opts": {}}], ids=["absent", "null", "empty"])
    def test_no_options(self, docker: Docker, options: dict[str, Any]) -> None:
        """Absent, null and {} are no options, on a new volume and on one with options."""
        assert docker("Create", Name="mongo", **options) == OK
        assert docker.status("mongo")["options"] == {}
        docker.created("redis", uid="184")
        assert docker("Create", Name="redis", **options) == OK
        assert docker.status("redis")["options"] == {"uid": "184"}

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"mongo"',
            b"\xff\xfe",
            b"{}",
            b'{"Name": null}',
            b'{"Name": 1}',
            b'{"Name": ""}',
            b"[" * 99999,
        ],
        ids=[
            "empty",
            "cut-off",
            "null",
            "array",
            "string",
            "not-utf8",
            "no-name",
            "null-name",
            "number",
            "empty-name",
            "deep",
        ],
    )
    @pytest.mark.parametrize("verb", [verb for verb in NAMED if verb != "Get"])
    def test_malformed(self, docker: Docker, verb: str, body: bytes) -> None:
        """A body that cannot be understood is 400, with what is expected."""
        answer = docker.ask(verb, body)
        assert answer.status == 400
        assert "Name" in answer.error

    @pytest.mark.parametrize(
        "options",
        [[], "uid=184", 5, {"uid": 184}, {"uid": None}, {"uid": ["184"]}, {"uid": True}, {"driver_opts": {"uid": "1"}}],
        ids=["array", "string", "number", "number-value", "null-value", "array-value", "true", "nested"],
    )
    def test_malformed_options(self, docker: Docker, options: Any) -> None:
        """Options that are no object of strings are 400, and nothing is made."""
        answer = docker("Create", Name="mongo", Opts=options)
        assert answer.status == 400
        assert "Opts" in answer.error
        assert docker.names() == []

    @pytest.mark.parametrize("body", [b"", b"{}", b"null", b"garbage"])
    def test_list_has_none(self, docker: Docker, body: bytes) -> None:
        """Podman's List has an empty body, Docker's {}; neither is read."""
        assert docker.ask("List", body).status == 200

    def test_a_body_of_a_mebibyte(self, docker: Docker) -> None:
        """A body of 1 MiB is read."""
        body = b'{"Name": "mongo"}'
        assert docker.ask("Create", body + b" " * ((1 << 20) - len(body))) == OK

    @pytest.mark.parametrize("verb", [verb for verb in NAMED if verb != "Get"])
    def test_a_body_over_a_mebibyte(self, docker: Docker, verb: str) -> None:
        """A body over 1 MiB is 413."""
        answer = docker.ask(verb, b'{"Name": "mongo"}' + b" " * (1 << 20))
        assert answer.status == 413
        assert "1 MiB" in answer.error


class TestEndpoints:
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/VolumeDriver.Create/",
            "/VolumeDriver.create",
            "/VolumeDriver.Foo",
            "/NetworkDriver.CreateNetwork",
            "/static/x",
        ],
    )
    def test_unknown(self, docker: Docker, path: str) -> None:
        """An endpoint that the protocol does not have is 404, as JSON."""
        answer = docker.ask(path, b"{}")
        assert answer.status == 404
        assert path in answer.error

    @pytest.mark.parametrize("path", ["/x//VolumeDriver.List", "/VolumeDriver.List//", "/a//b"])
    def test_doubled_slashes(self, docker: Docker, path: str) -> None:
        """A doubled slash makes another, unknown endpoint: 404 as JSON, and no redirection."""
        assert docker.ask(path, b"{}").status == 404

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
    @pytest.mark.parametrize("verb", VERBS)
    def test_other_methods(self, driver: Driver, verb: str, method: str) -> None:
        """A method other than POST is 405, as JSON."""
        response = create_app(driver).test_client().open(f"/VolumeDriver.{verb}", method=method)
        assert response.status_code == 405
        assert "POST" in json.loads(response.data)["Err"]

    def test_an_unknown_path_with_control_characters(self, docker: Docker) -> None:
        """What is shown of a path has its control characters escaped."""
        assert "\\x1b" in docker.ask("/%1b[31m", b"").error


class TestNames:
    BAD = ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-a", "a b", "a\n", "a\0", "ä", "a" * 256, "lost+found"]

    @pytest.mark.parametrize("name", ["ab", "0.", "a.b_c-d", "A" * 255])
    def test_accepted(self, docker: Docker, name: str) -> None:
        """A new name is of letters, digits, and after the first _ . -, of two to 255 bytes."""
        assert docker.created(name).is_dir()
        assert docker.names() == [name]
        assert docker.remove(name) == OK

    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize("name", BAD)
    @pytest.mark.parametrize("verb", ["Create", "Path", "Mount", "Remove"])
    def test_refused(self, docker: Docker, verb: str, name: str) -> None:
        """Any other name is 400."""
        assert docker(verb, Name=name).status == 400

    @pytest.mark.parametrize("name", BAD[1:])
    def test_get(self, docker: Docker, name: str) -> None:
        """A name that no volume can have is a definite no."""
        answer = docker("Get", Name=name)
        assert answer.status == 404
        assert answer.error.isprintable()

    @pytest.mark.parametrize("name", BAD[1:])
    def test_unmount(self, docker: Docker, name: str) -> None:
        """Unmount of anything succeeds."""
        assert docker.unmount(name) == OK


class TestCreate:
    def test_without_options(self, docker: Docker, host: Host) -> None:
        """A volume without options is root's, 0755, and empty."""
        data = docker.created("mongo")
        assert data == host.data("mongo")
        assert (owner(data), mode(data)) == ((0, 0), "0755")
        assert list(data.iterdir()) == []

    def test_with_options(self, docker: Docker) -> None:
        """Owner, mode and label are set before Create answers."""
        data = docker.created("mongo", uid="184", gid="998", mode="02770", label="container_file_t")
        assert (owner(data), mode(data), label(data)) == ((184, 998), "2770", LABEL)

    @pytest.mark.parametrize(
        ("given", "ids"), [({"uid": "184"}, (184, 0)), ({"gid": "998"}, (0, 998))], ids=["uid", "gid"]
    )
    def test_one_id(self, docker: Docker, given: dict[str, str], ids: tuple[int, int]) -> None:
        """An id that is not declared is 0 at first."""
        assert owner(docker.created("mongo", **given)) == ids

    def test_the_largest_ids(self, docker: Docker) -> None:
        """The largest id is a real owner, not chown's "leave alone"."""
        assert owner(docker.created("mongo", uid="4294967294", gid="4294967294")) == (4294967294, 4294967294)

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
    def test_under_any_umask(self, docker: Docker, umask: int) -> None:
        """The umask of the process does not matter."""
        before = os.umask(umask)
        try:
            assert mode(docker.created("mongo")) == "0755"
            assert mode(docker.created("redis", mode="07777")) == "7777"
        finally:
            os.umask(before)

    def test_again(self, docker: Docker) -> None:
        """The engine retries Create: with equal or no options it succeeds and changes nothing."""
        docker.created("mongo", uid="184", mode="0750")
        before = docker.get("mongo")
        assert docker.create("mongo", mode="00750", uid="184") == OK
        assert docker.create("mongo") == OK
        assert docker.get("mongo") == before

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({"uid": "185"}, ["uid is 184, asked for 185"]),
            ({"uid": "184", "gid": "1"}, ["gid is not set, asked for 1"]),
            ({"mode": "0755"}, ["uid is 184, asked for none", "mode is not set, asked for 0755"]),
            ({"uid": "184", "recurse": "mismatch"}, ["recurse"]),
        ],
        ids=["value", "more", "others", "a-default"],
    )
    def test_again_with_other_options(self, docker: Docker, given: dict[str, str], named: list[str]) -> None:
        """Create of an existing volume with other options is 409, names the difference and changes nothing."""
        docker.created("mongo", uid="184")
        before = docker.get("mongo")
        answer = docker.create("mongo", **given)
        assert answer.status == 409
        assert all(phrase in answer.error for phrase in named)
        assert docker.get("mongo") == before

    def test_again_after_changes_by_a_container(self, docker: Docker) -> None:
        """Create again does not touch what a container wrote."""
        data = docker.created("mongo", uid="184")
        (data / "file").write_text("written")
        docker.create("mongo", uid="184")
        assert (data / "file").read_text() == "written"

    @pytest.mark.parametrize(
        "options",
        [
            {"uid": "root"},
            {"gid": "01"},
            {"mode": "750"},
            {"label": "a:b"},
            {"path": "relative"},
            {"recurse": "yes"},
            {"on_remove": "keep"},
            {"size": "1G"},
            {"uid": ""},
            {"path": "/srv/x", "on_remove": "delete"},
            {"path": "/srv/\ud800"},
            {"image": "Mongo"},
            {"at": "/data"},
            {"image": "mongo", "at": "data"},
            {"mountpoint": "relative"},
            {"path": "/srv/x", "mountpoint": "/srv/x"},
            {"uid": "1", "bad": "1"},
        ],
        ids=lambda options: " ".join(
            f"{k}={v}".encode("ascii", "backslashreplace").decode() for k, v in options.items()
        ),
    )
    def test_refused(self, docker: Docker, host: Host, options: dict[str, str]) -> None:
        """A bad option is 400, named in the message, and nothing at all is left."""
        answer = docker.create("mongo", **options)
        assert answer.status == 400
        assert any(key in answer.error for key in options)
        assert (host.left_in_volumes(), host.trash()) == ([], [])
        assert docker.knows("mongo") is False

    def test_many_at_once(self, docker: Docker, host: Host) -> None:
        """Parallel Creates of one volume, as Swarm sends them, all succeed, and make one."""
        answers = in_parallel(12, lambda _: docker.create("mongo", uid="184"))
        assert answers == [OK] * 12
        assert host.left_in_volumes() == ["mongo"]

    def test_many_different_at_once(self, docker: Docker) -> None:
        """Parallel Creates of different volumes all succeed."""
        assert in_parallel(12, lambda number: docker.create(f"v{number}", uid=str(number))) == [OK] * 12
        assert len(docker.names()) == 12

    def test_contradicting_at_once(self, docker: Docker) -> None:
        """Of parallel Creates with different options one wins, and the others are told."""
        answers = in_parallel(8, lambda number: docker.create("mongo", uid=str(number)))
        assert sorted(answer.status for answer in answers) == [200] + [409] * 7
        assert owner(Path(docker.mounted("mongo")))[0] == [a.status for a in answers].index(200)

    def test_a_full_disk(self, docker_on_tmpfs: Docker, host: Host) -> None:
        """On a full disk Create is 507, and nothing is left of it."""
        with (host.root / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"\0" * 4096)
        answer = docker_on_tmpfs.create("mongo", uid="184")
        assert answer.status == 507
        assert host.left_in_volumes() == []
        (host.root / "filler").unlink()
        assert docker_on_tmpfs.create("mongo", uid="184") == OK

    def test_a_root_that_cannot_be_written(self, docker_on_tmpfs: Docker, host: Host) -> None:
        """On a read-only file system Create fails, and Get goes on answering."""
        docker_on_tmpfs.created("redis")
        os.system(f"mount -o remount,ro {host.root}")  # noqa: S605  # of pytest's own making
        assert docker_on_tmpfs.create("mongo").status == 500
        assert docker_on_tmpfs.knows("redis") is True
        assert docker_on_tmpfs.knows("mongo") is False
        assert docker_on_tmpfs.names() == ["redis"]


@pytest.fixture
def docker_on_tmpfs(host: Host, open_driver: OpenDriver) -> Any:
    """A root on a small tmpfs of its own, which can be filled, unmounted and replaced."""
    host.root.mkdir(mode=0o700)
    with mounted("-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(host.root)):
        yield Docker(create_app(open_driver()).test_client())


def in_parallel(count: int, call: Callable[[int], Answer]) -> list[Answer]:
    """Call as many times, all at the same moment, and return the answers in order."""
    answers: list[Answer | None] = [None] * count
    barrier = threading.Barrier(count)

    def one(number: int) -> None:
        barrier.wait()
        answers[number] = call(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]


class TestGet:
    def test_what_it_says(self, docker: Docker, host: Host) -> None:
        """Get answers name, mountpoint, time of creation and status."""
        docker.created("mongo", uid="184", mode="00750")
        volume = docker.get("mongo")
        assert set(volume) == {"Name", "Mountpoint", "CreatedAt", "Status"}
        assert (volume["Name"], volume["Mountpoint"]) == ("mongo", str(host.data("mongo")))
        assert volume["Status"] == {
            "uid": 184,
            "gid": 0,
            "mode": "0750",
            "label": None,
            "options": {"uid": "184", "mode": "00750"},
            "ready": True,
            "drift": [],
            "warnings": [],
        }

    def test_when_it_was_made(self, docker: Docker) -> None:
        """CreatedAt is RFC 3339."""
        before = time.time()
        docker.created("mongo")
        made = datetime.strptime(docker.get("mongo")["CreatedAt"], "%Y-%m-%dT%H:%M:%S%z")
        assert int(before) <= made.timestamp() <= time.time()

    def test_a_definite_no(self, docker: Docker) -> None:
        """A volume that there is not is 404, and the message says where to look."""
        answer = docker("Get", Name="mongo")
        assert answer.status == 404
        assert "no volume mongo" in answer.error

    def test_what_is_on_disk_now(self, docker: Docker) -> None:
        """Status shows owner, mode and label as they are, and what differs as drift, a sentence each."""
        data = docker.created("mongo", uid="184", mode="0750", label="container_file_t")
        os.chown(data, 55, 66)
        os.chmod(data, 0o2711)
        os.removexattr(data, "security.selinux")
        status = docker.status("mongo")
        assert (status["uid"], status["gid"], status["mode"], status["label"]) == (55, 66, "02711", None)
        assert status["ready"] is False
        assert [sentence.split()[0] for sentence in status["drift"]] == ["owner", "label", "mode"]
        assert mode(data) == "2711"

    def test_what_is_not_declared_is_no_drift(self, docker: Docker) -> None:
        """PostgreSQL may make its directory 0700, and an owner that was not declared may change."""
        data = docker.created("mongo", uid="184")
        os.chown(data, 184, 77)
        os.chmod(data, 0o700)
        status = docker.status("mongo")
        assert (status["ready"], status["drift"]) == (True, [])
        docker.mounted("mongo")
        assert (owner(data), mode(data)) == ((184, 77), "0700")

    def test_data_that_is_missing(self, docker: Docker, host: Host) -> None:
        """Without its directory a volume is still there, not ready, with nulls and a warning."""
        docker.created("mongo", uid="184")
        host.data("mongo").rmdir()
        status = docker.status("mongo")
        assert [status[key] for key in ("uid", "gid", "mode", "label", "ready")] == [None, None, None, None, False]
        assert "is not there" in status["warnings"][0]

    @pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'{"Name": null}', b"{}", b'{"Name": ""}', b"\xff"])
    def test_a_body_in_doubt(self, docker: Docker, body: bytes) -> None:
        """A Get that cannot be understood is not answered: an engine's retry may come empty."""
        docker.created("mongo")
        with pytest.raises(NoAnswer):
            docker.ask("Get", body)

    def test_a_body_too_large(self, docker: Docker) -> None:
        """A Get over 1 MiB is not answered."""
        with pytest.raises(NoAnswer):
            docker.ask("Get", b'{"Name": "mongo"}' + b" " * (1 << 20))

    def test_an_internal_fault(self, docker: Docker, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fault of hostprep's own closes a Get without an answer, and is 500 anywhere else."""

        def fail(name: str) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(driver, "get", fail)
        monkeypatch.setattr(driver, "path", fail)
        with pytest.raises(NoAnswer):
            docker("Get", Name="mongo")
        assert docker("Path", Name="mongo") == Answer(500, {"Err": "internal error: RuntimeError: a bug"})

    def test_no_descriptors_left(self, docker: Docker, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no file can be opened Get is not answered."""
        docker.created("mongo")
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.ESTALE):

            def fail(*_: object, number: int = number, **__: object) -> int:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                patch.setattr(os, "open", fail)
                assert docker.knows("mongo") is None
                assert docker.knows("other") is None
        assert docker.knows("mongo") is True


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "another-name": lambda path: path.write_text(path.read_text().replace('"mongo"', '"other"')),
    "unknown-key": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"})),
    "bad-options": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "options": {"uid": "x"}})),
    "bad-time": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "created_at": "2026-W48-2T04Z"})
    ),
    "too-long": lambda path: path.write_bytes(path.read_bytes() + b" " * 70_000),
    "anothers": lambda path: os.chown(path, 1000, 1000),
    "writable": lambda path: path.chmod(0o666),
    "missing": lambda path: path.unlink(),
    "hard-link": lambda path: path.with_name("other").hardlink_to(path),
}


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        path.rename(path.with_name("moved"))
        make(path)

    return damage


DAMAGES |= {
    "symlink": replaced(lambda path: path.symlink_to("moved")),
    "dangling": replaced(lambda path: path.symlink_to("nowhere")),
    "fifo": replaced(os.mkfifo),
    "directory": replaced(lambda path: path.mkdir()),
    "device": replaced(lambda path: os.mknod(path, 0o20600, os.makedev(1, 3))),
}


def _make_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


DAMAGES["socket"] = replaced(_make_socket)


class TestDoubt:
    """A record that cannot be trusted is neither there nor not there."""

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
    def test_a_damaged_record(self, docker: Docker, host: Host, damage: Callable[[Path], object]) -> None:
        """Get is not answered; List names it without Mountpoint, and the others as ever; the rest is refused."""
        docker.created("mongo", uid="184")
        docker.created("redis")
        assert docker.knows("mongo") is True
        docker.names()
        damage(host.record("mongo"))
        before = sorted(os.listdir(host.volume("mongo")))
        assert docker.knows("mongo") is None
        assert docker.listed() == [{"Name": "mongo"}, {"Name": "redis", "Mountpoint": str(host.data("redis"))}]
        for answer in (
            docker.mount("mongo"),
            docker("Path", Name="mongo"),
            docker.create("mongo"),
            docker.remove("mongo"),
        ):
            assert answer.status == 500
            assert "mongo" in answer.error
            assert "Mountpoint" not in answer.body
        assert docker.unmount("mongo") == OK
        assert docker.mount("redis").status == 200
        assert sorted(os.listdir(host.volume("mongo"))) == before

    @pytest.mark.parametrize("kind", ["symlink", "file", "empty"])
    def test_a_damaged_directory(self, docker: Docker, host: Host, kind: str) -> None:
        """A volume whose directory is a link, a file or empty is in doubt."""
        docker.created("mongo", uid="184")
        host.volume("mongo").rename(host.root / "moved")
        if kind == "symlink":
            host.volume("mongo").symlink_to(host.root / "moved")
        elif kind == "file":
            host.volume("mongo").touch()
        else:
            host.volume("mongo").mkdir()
        assert docker.knows("mongo") is None
        assert docker.listed() == [{"Name": "mongo"}]
        assert docker.mount("mongo").status == 500
        assert docker.create("mongo").status == 500

    @pytest.mark.parametrize("name", ["lost+found", "a b", "-x", "x\n", "\udcff"], ids=ascii)
    def test_a_stranger_among_the_volumes(self, docker: Docker, host: Host, name: str) -> None:
        """A directory that no volume could be (lost+found of a disk of its own) never fails the list, nor a path."""
        docker.created("redis")
        (host.root / "volumes" / name).mkdir()
        assert "redis" in docker.names()
        assert docker.create("mongo", path=f"{host.srv}/mongo") == OK

    def test_a_record_mended_again(self, docker: Docker, host: Host) -> None:
        """A volume is there again as soon as its record is."""
        docker.created("mongo", uid="184")
        good = host.record("mongo").read_bytes()
        for _ in range(3):
            host.record("mongo").write_bytes(good[:10])
            assert docker.knows("mongo") is None
            assert docker.listed() == [{"Name": "mongo"}]
            host.record("mongo").write_bytes(good)
            assert docker.knows("mongo") is True
            assert "Mountpoint" in docker.listed()[0]

    ROOTS: dict[str, Callable[[Path], object]] = {
        "missing": lambda root: root.rename(root.with_name("elsewhere")),
        "empty": lambda root: (root.rename(root.with_name("elsewhere")), root.mkdir(0o700)),
        "a-file": lambda root: (root.rename(root.with_name("elsewhere")), root.touch()),
        "without-volumes": lambda root: (root / "volumes").rename(root / "elsewhere"),
        "volumes-made-anew": lambda root: (
            (root / "volumes").rename(root / "elsewhere"),
            (root / "volumes").mkdir(0o700),
        ),
        "volumes-a-link": lambda root: (
            (root / "volumes").rename(root / "elsewhere"),
            (root / "volumes").symlink_to(root / "elsewhere"),
        ),
        "another": lambda root: (
            root.rename(root.with_name("elsewhere")),
            shutil.copytree(root.with_name("elsewhere"), root),
            (root / "hostprep.json").write_text('{"format": 1, "id": "another"}'),
        ),
        "a-later-format": lambda root: (
            root.rename(root.with_name("elsewhere")),
            shutil.copytree(root.with_name("elsewhere"), root),
            (root / "hostprep.json").write_text('{"format": 2, "id": "another"}'),
        ),
    }

    @pytest.mark.parametrize("damage", ROOTS.values(), ids=list(ROOTS))
    def test_a_root_that_is_gone(self, docker: Docker, host: Host, damage: Callable[[Path], object]) -> None:
        """Where the root cannot be read, Get of any name is not answered, and List and all else are 500."""
        docker.created("mongo")
        docker.names()
        damage(host.root)
        assert docker.knows("mongo") is None
        assert docker.knows("other") is None
        assert docker("List").status == 500
        for answer in (
            docker.mount("mongo"),
            docker.create("new"),
            docker.remove("mongo"),
            docker("Path", Name="mongo"),
        ):
            assert answer.status == 500, answer.error
        assert docker.unmount("mongo") == OK
        assert docker("Capabilities").status == 200

    def test_a_root_that_comes_back(self, docker: Docker, host: Host) -> None:
        """When the root is back, all is as before, without a restart."""
        docker.created("mongo")
        host.root.rename(host.root.with_name("elsewhere"))
        assert docker.knows("mongo") is None
        host.root.with_name("elsewhere").rename(host.root)
        assert docker.knows("mongo") is True
        assert docker.knows("other") is False
        assert docker.names() == ["mongo"]

    def test_an_unmounted_disk(self, docker_on_tmpfs: Docker, host: Host) -> None:
        """While the disk of the root is not mounted, nothing is answered from the directory below it."""
        docker_on_tmpfs.created("mongo")
        with mounted("-t", "tmpfs", "-o", "mode=0700", "none", str(host.root)):
            assert docker_on_tmpfs.knows("mongo") is None
            assert docker_on_tmpfs("List").status == 500
            assert docker_on_tmpfs.create("new").status == 500
            assert os.listdir(host.root) == []
        assert docker_on_tmpfs.knows("mongo") is True
        assert docker_on_tmpfs.create("new") == OK


class TestList:
    def test_none(self, docker: Docker) -> None:
        """Without volumes the list is empty, not null."""
        assert docker("List") == Answer(200, {"Volumes": [], "Err": ""})

    def test_several(self, docker: Docker, host: Host) -> None:
        """List has name and mountpoint of each, sorted."""
        for name in ("redis", "mongo"):
            docker.created(name)
        docker.created("path", path=f"{host.srv}/db")
        assert docker.listed() == [
            {"Name": "mongo", "Mountpoint": str(host.data("mongo"))},
            {"Name": "path", "Mountpoint": f"{host.srv}/db"},
            {"Name": "redis", "Mountpoint": str(host.data("redis"))},
        ]

    def test_what_another_process_does_is_seen_at_once(self, docker: Docker, open_driver: OpenDriver) -> None:
        """Create, rm, retain, taking up, restore and rename by the command line are in the very next List and Get."""
        other = Docker(create_app(open_driver()).test_client())
        for _ in range(3):
            other.created("mongo", uid="184", on_remove="retain")
            assert (docker.names(), docker.knows("mongo")) == (["mongo"], True)
            other.remove("mongo")
            assert (docker.names(), docker.knows("mongo")) == ([], False)
            other.created("mongo")
            assert (docker.names(), docker.knows("mongo")) == (["mongo"], True)
            other.remove("mongo")
            open_driver().discard_retained("mongo", time.monotonic() + 5)
            assert (docker.names(), docker.knows("mongo")) == ([], False)
            open_driver().restore("mongo", entry=None, new_name="redis", deadline=time.monotonic() + 5)
            assert (docker.names(), docker.knows("mongo"), docker.knows("redis")) == (["redis"], False, True)
            open_driver().apply("redis", {"on_remove": "delete"}, (), time.monotonic() + 5)
            assert docker.status("redis")["options"]["on_remove"] == "delete"
            other.remove("redis")
            assert (docker.names(), docker.knows("redis")) == ([], False)

    def test_retaining_among_many_is_seen_at_once(self, docker: Docker, open_driver: OpenDriver) -> None:
        """With many volumes too, one that another process retains or takes up again is in the very next List."""
        other = Docker(create_app(open_driver()).test_client())
        for number in range(40):
            docker.created(f"v{number:02}", on_remove="retain")
        for name in ("v39", "v00", "v20"):
            for change, expected in ((other.remove, 39), (other.create, 40)):
                time.sleep(0.06)  # what was read a moment after a change is not remembered anyway
                docker.names()
                docker.names()
                assert change(name) == OK
                assert len(docker.names()) == expected

    def test_by_many_at_once(self, docker: Docker, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of many that ask at once one reads the records, and the others wait for what it finds."""
        for number in range(20):
            docker.created(f"v{number}")
        time.sleep(0.1)
        reads: list[str] = []
        read = driver.store.open
        monkeypatch.setattr(driver.store, "open", lambda name: (reads.append(name), time.sleep(0.001), read(name))[2])
        assert in_parallel(8, lambda _: docker("List")) == [docker("List")] * 8
        assert len(reads) == 20

    def test_more_than_the_few_looked_at_again(self, docker: Docker, host: Host) -> None:
        """With many volumes too, one that comes or goes is seen at once, a damaged one within a few Lists."""
        for number in range(70):
            docker.created(f"v{number:02}")
        assert len(docker.names()) == 70
        docker.remove("v33")
        assert len(docker.names()) == 69
        time.sleep(0.06)
        docker.names()
        host.record("v50").write_bytes(b"")
        assert any({"Name": "v50"} in docker.listed() for _ in range(4))


class TestPath:
    def test_what_it_answers(self, docker: Docker, host: Host) -> None:
        """Path answers where the volume is, ready or not."""
        data = docker.created("mongo", uid="184")
        os.chown(data, 0, 0)
        assert docker("Path", Name="mongo") == Answer(200, {"Mountpoint": str(host.data("mongo")), "Err": ""})
        assert owner(data) == (0, 0)

    def test_of_none(self, docker: Docker) -> None:
        """Path of an unknown volume is 404, without a Mountpoint."""
        answer = docker("Path", Name="mongo")
        assert answer.status == 404
        assert "Mountpoint" not in answer.body


class TestMount:
    def test_again(self, docker: Docker, host: Host) -> None:
        """Mount is idempotent, with one ID or several."""
        docker.created("mongo", uid="184")
        for caller in ("a", "a", "b", ""):
            assert docker("Mount", Name="mongo", ID=caller) == Answer(
                200, {"Mountpoint": str(host.data("mongo")), "Err": ""}
            )

    def test_of_none(self, docker: Docker) -> None:
        """Mount of an unknown volume is 404."""
        assert docker.mount("mongo").status == 404

    def test_repairs(self, docker: Docker) -> None:
        """Mount brings back owner, mode and label."""
        data = docker.created("mongo", uid="184", gid="998", mode="0750", label="container_file_t")
        os.chown(data, 0, 0)
        os.chmod(data, 0o755)
        os.setxattr(data, "security.selinux", b"system_u:object_r:etc_t:s0\0")
        assert docker.mounted("mongo") == data
        assert (owner(data), mode(data), label(data)) == ((184, 998), "0750", LABEL)
        assert docker.status("mongo")["ready"] is True

    def test_data_that_is_missing(self, docker: Docker, host: Host) -> None:
        """A missing directory is an error in words, and is never made anew."""
        docker.created("mongo", uid="184")
        host.data("mongo").rmdir()
        answer = docker.mount("mongo")
        assert answer.status == 500
        assert f"{host.data('mongo')} does not exist" in answer.error
        assert not host.data("mongo").exists()
        assert docker.unmount("mongo") == OK
        assert not host.data("mongo").exists()
        assert docker.create("mongo", uid="184") == OK
        assert not host.data("mongo").exists()

    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize("kind", ["symlink", "file"])
    def test_data_that_is_something_else(self, docker: Docker, host: Host, kind: str) -> None:
        """Mount answers only where a directory is: a link to one is none."""
        docker.created("mongo", uid="184")
        host.data("mongo").rmdir()
        if kind == "symlink":
            host.data("mongo").symlink_to("/etc")
        else:
            host.data("mongo").touch()
        answer = docker.mount("mongo")
        assert answer.status == 500
        assert "Mountpoint" not in answer.body
        assert owner(Path("/etc")) == (0, 0)


class TestUnmount:
    def test_repairs(self, docker: Docker) -> None:
        """Copy-up has just been when Unmount comes: it repairs like Mount."""
        data = docker.created("mongo", uid="184", gid="998")
        os.chown(data, 0, 0)
        assert docker.unmount("mongo") == OK
        assert owner(data) == (184, 998)

    def test_without_a_mount(self, docker: Docker) -> None:
        """Unmount needs no Mount before it, and no volume."""
        docker.created("mongo")
        assert docker.unmount("mongo") == OK
        assert docker.unmount("mongo") == OK
        assert docker.unmount("never-there") == OK


class TestRemove:
    def test_removes(self, docker: Docker, host: Host) -> None:
        """Remove takes the volume away and keeps its data in the trash."""
        (docker.created("mongo") / "file").write_text("written")
        assert docker.remove("mongo") == OK
        assert (docker.names(), docker.knows("mongo")) == ([], False)
        (entry,) = host.trash()
        assert (host.root / "trash" / entry / "_data" / "file").read_text() == "written"

    def test_again(self, docker: Docker) -> None:
        """The engine retries Remove: of a name removed within the last minute it succeeds."""
        docker.created("mongo")
        assert docker.remove("mongo") == OK
        assert docker.remove("mongo") == OK

    def test_again_by_another_process(self, docker: Docker, open_driver: OpenDriver) -> None:
        """The server that is asked again need not be the one that removed."""
        docker.created("mongo")
        docker.remove("mongo")
        assert Docker(create_app(open_driver()).test_client()).remove("mongo") == OK

    def test_again_after_retaining(self, docker: Docker) -> None:
        """Remove again succeeds where the data was retained, too."""
        docker.created("mongo", on_remove="retain")
        assert docker.remove("mongo") == OK
        assert docker.remove("mongo") == OK

    def test_again_after_its_purge(self, docker: Docker, driver: Driver) -> None:
        """Remove again within the minute succeeds although the trash was purged, as with HOSTPREP_TRASH_KEEP=0."""
        docker.created("mongo")
        docker.remove("mongo")
        assert driver.purge(None).gone == 1
        assert docker.remove("mongo") == OK

    def test_later(self, docker: Docker, driver: Driver, host: Host) -> None:
        """After a minute the volume is unknown: 404."""
        docker.created("mongo")
        docker.remove("mongo")
        driver._removed["mongo"] -= 70
        (entry,) = host.trash()
        old = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - 70))
        (host.root / "trash" / entry).rename(host.root / "trash" / (old + entry[16:]))
        assert docker.remove("mongo").status == 404

    def test_of_none(self, docker: Docker) -> None:
        """Remove of an unknown volume is 404."""
        docker.created("other")
        docker.remove("other")
        assert docker.remove("mongo").status == 404

    def test_and_create_again(self, docker: Docker) -> None:
        """A name is free at once for a new, empty volume, and the next Remove is its own."""
        (docker.created("mongo", uid="184") / "file").touch()
        docker.remove("mongo")
        assert list(docker.created("mongo", uid="1").iterdir()) == []
        assert docker.remove("mongo") == OK
        assert docker.knows("mongo") is False

    def test_many_at_once(self, docker: Docker, host: Host) -> None:
        """Parallel Removes of one volume all succeed, and remove it once."""
        docker.created("mongo")
        assert in_parallel(8, lambda _: docker.remove("mongo")) == [OK] * 8
        assert len(host.trash()) == 1


def test_all_verbs_at_once(docker: Docker, host: Host) -> None:
    """Under all verbs at once, every answer is one that the protocol has, and what is left is whole."""

    def some(number: int) -> Answer:
        name = f"v{number % 3}"
        for _ in range(6):
            answers = [
                docker.create(name, uid="184"),
                docker.mount(name),
                docker("List"),
                docker.unmount(name),
                docker("Get", Name=name),
                docker.remove(name),
            ]
            assert [answer.status for answer in answers if answer.status not in (200, 404)] == []
            assert (answers[0].status, answers[3].status, answers[5].status) == (200, 200, 200)
        return OK

    assert in_parallel(9, some) == [OK] * 9
    assert all(docker.knows(name) for name in host.left_in_volumes())
