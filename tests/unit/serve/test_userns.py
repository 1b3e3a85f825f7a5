"""Whose numbers uid and gid are: what the server learns of who asks, with real processes over its socket."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.errors import Invalid
from hostprep.host import dockerd
from hostprep.host.userns import HOST
from tests.support.engines import Asking, asking, etc
from tests.support.host import PYTHON, Host, Server, mode, owner

pytestmark = pytest.mark.root

IDS = {"uid": "184", "gid": "998"}
LAB = "lab:231072:1000\nlab:400000:64536\n"
REMAP = {"uid": "0:231072:1000,1000:400000:64536", "gid": "0:300000:65536"}


@pytest.fixture
def server(host: Host) -> Server:
    return host.serve()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root as an engine with that map has it."""
    data = tmp_path / "docker"
    (data / "231072.300000").mkdir(parents=True)
    return data


@pytest.fixture
def ranges(tmp_path: Path) -> Path:
    return etc(tmp_path / "etc", {"subuid": LAB, "subgid": "lab:300000:65536\n"})


@pytest.fixture
def engine(ranges: Path, data: Path) -> Iterator[Asking]:
    """An engine with userns-remap, whose user has two ranges."""
    with asking("--userns-remap=lab", "--data-root", str(data), etc=ranges) as engine:
        yield engine


def record(host: Host, name: str) -> dict[str, object]:
    found = json.loads(host.record(name).read_text())
    assert isinstance(found, dict)
    return found


class TestAuto:
    """Without the option, and with `auto`, the map is that of the engine that asks."""

    def test_create(self, host: Host, server: Server, engine: Asking) -> None:
        """184 is the container's, so the host's number that stands for it is on disk; the map is in the record."""
        assert engine(server.socket, "Create", Name="mongo", Opts=IDS).status == 200
        assert owner(host.data("mongo")) == (231256, 300998)
        assert record(host, "mongo")["userns"] == REMAP
        status = engine(server.socket, "Get", Name="mongo").body["Volume"]["Status"]
        told = {key: status[key] for key in ("uid", "gid", "host_uid", "host_gid", "userns", "ready", "warnings")}
        assert told == {
            "uid": 184,
            "gid": 998,
            "host_uid": 231256,
            "host_gid": 300998,
            "userns": REMAP,
            "ready": True,
            "warnings": [],
        }

    def test_the_second_range(self, host: Host, server: Server, engine: Asking) -> None:
        """An id of the second range is not the first's start plus the id."""
        assert engine(server.socket, "Create", Name="mongo", Opts={"uid": "5000", "gid": "5000"}).status == 200
        assert owner(host.data("mongo")) == (404000, 305000)

    def test_nothing_declared(self, host: Host, server: Server, engine: Asking) -> None:
        """What nobody declares is root's, the container's root's."""
        assert engine(server.socket, "Create", Name="mongo").status == 200
        assert (owner(host.data("mongo")), mode(host.data("mongo"))) == ((231072, 300000), "0755")

    def test_repaired(self, host: Host, server: Server, engine: Asking) -> None:
        """Mount repairs to the host's numbers, contents too; Status names both."""
        engine(server.socket, "Create", Name="mongo", Opts=IDS)
        (host.data("mongo") / "file").touch()
        os.chown(host.data("mongo"), 184, 998)
        status = engine(server.socket, "Get", Name="mongo").body["Volume"]["Status"]
        assert (status["uid"], status["host_uid"]) == (65534, 184)  # what the container sees, and what it is
        assert status["drift"] == ["owner is 184:998, declared 231256:300998 (on this host; 184:998 in the container)"]
        assert engine(server.socket, "Mount", Name="mongo", ID="c" * 64).status == 200
        assert owner(host.data("mongo")) == owner(host.data("mongo") / "file") == (231256, 300998)

    @pytest.mark.parametrize("key", ["data-root", "graph"])
    def test_configuration_file(
        self, host: Host, server: Server, tmp_path: Path, ranges: Path, data: Path, key: str
    ) -> None:
        """A daemon.json counts as the command line does."""
        file = tmp_path / "daemon.json"
        file.write_text(json.dumps({"userns-remap": "lab:lab", key: str(data)}))
        with asking("--config-file", str(file), etc=ranges) as engine:
            assert engine(server.socket, "Create", Name="mongo", Opts=IDS).status == 200
        assert owner(host.data("mongo")) == (231256, 300998)

    def test_without_remap(self, host: Host, server: Server, ranges: Path) -> None:
        """Of an engine without userns-remap the numbers are the host's, and nothing is recorded."""
        with asking("--data-root=/x", "--config-file=/none", etc=ranges) as engine:
            assert engine(server.socket, "Create", Name="mongo", Opts=IDS).status == 200
        assert owner(host.data("mongo")) == (184, 998)
        assert "userns" not in record(host, "mongo")

    @pytest.mark.parametrize("name", ["podman", "python3"])
    def test_others(self, host: Host, server: Server, ranges: Path, name: str) -> None:
        """Podman's numbers are the host's, whatever its command line says; so are a client's where no engine runs."""
        with asking("--userns-remap=lab", etc=ranges, name=name) as client:
            assert client(server.socket, "Create", Name="mongo", Opts=IDS).status == 200
        assert owner(host.data("mongo")) == (184, 998)

    def test_a_second_engine(self, host: Host, server: Server, engine: Asking, tmp_path: Path) -> None:
        """Each engine is known by itself, not by the last one."""
        (tmp_path / "docker/100000.100000").mkdir()
        other = etc(tmp_path / "other", {"subuid": "dockremap:100000:65536\n", "subgid": "dockremap:100000:65536\n"})
        with asking("--userns-remap", "default", "--data-root", str(tmp_path / "docker"), etc=other) as second:
            for name, asks in {"one": engine, "two": second}.items():
                assert asks(server.socket, "Create", Name=name, Opts=IDS).status == 200
        assert [owner(host.data(name)) for name in ("one", "two")] == [(231256, 300998), (100184, 100998)]


class TestRefused:
    """What cannot be told is refused at Create, in words, and leaves nothing."""

    def refused(self, host: Host, server: Server, engine: Asking, **options: str) -> str:
        answer = engine(server.socket, "Create", Name="mongo", Opts=IDS | options)
        assert answer.status == 400
        assert host.left_in_volumes() == []
        return answer.error

    @pytest.mark.parametrize("key", ["uid", "gid"])
    def test_out_of_the_map(self, host: Host, server: Server, engine: Asking, key: str) -> None:
        """An id that the engine's containers do not have is refused, with those that they have."""
        said = self.refused(host, server, engine, **{key: "70000"})
        assert f"option {key}: the engine's containers have no 70000" in said
        assert "userns=host" in said

    def test_not_confirmed(self, host: Host, server: Server, ranges: Path, tmp_path: Path) -> None:
        """An engine whose data root says otherwise may have begun with another configuration."""
        with asking("--userns-remap=lab", "--data-root", str(tmp_path), etc=ranges) as engine:
            assert "was that changed since it started?" in self.refused(host, server, engine)
            assert "userns=host" in self.refused(host, server, engine)
            assert engine(server.socket, "Create", Name="mongo", Opts=IDS | {"userns": "host"}).status == 200
        assert owner(host.data("mongo")) == (184, 998)

    @pytest.mark.parametrize(
        ("words", "used"), [(["--userns-remap=lab"], "."), ([], "231072.300000"), (["--userns-remap=lab"], "1.1")]
    )
    def test_what_it_uses(
        self, host: Host, server: Server, ranges: Path, data: Path, words: list[str], used: str
    ) -> None:
        """What an engine has open tells more than directories that are there, which earlier ones may have left."""
        for directory in (".", "231072.300000", "1.1"):
            (data / directory / "volumes").mkdir(parents=True)
            (data / directory / "volumes/metadata.db").touch()
        under = ("sh", "-c", 'exec "$@" 9<"$0"', f"{data / used}/volumes/metadata.db")
        words = [*words, "--config-file=/none", "--data-root", str(data)]
        with asking(*words, etc=ranges, under=under) as engine:
            assert "was that changed since it started?" in self.refused(host, server, engine)
        right = data / ("231072.300000" if "--userns-remap=lab" in words else ".")
        with asking(*words, etc=ranges, under=(*under[:3], f"{right}/volumes/metadata.db")) as engine:
            assert engine(server.socket, "Create", Name="mongo", Opts=IDS).status == 200

    @pytest.mark.parametrize("text", ["{", "[1]", "null"])
    def test_no_configuration(self, host: Host, server: Server, ranges: Path, tmp_path: Path, text: str) -> None:
        """A configuration file that no engine starts with was changed since."""
        (tmp_path / "daemon.json").write_text(text)
        with asking("--config-file", str(tmp_path / "daemon.json"), etc=ranges) as engine:
            assert "is not what an engine reads" in self.refused(host, server, engine)

    def test_no_ranges(self, host: Host, server: Server, ranges: Path, data: Path) -> None:
        """A user without ranges is named."""
        with asking("--userns-remap=nobody", "--data-root", str(data), etc=ranges) as engine:
            assert "/etc/subuid has no ranges: userns nobody" in self.refused(host, server, engine)

    def test_a_user_namespace(self, host: Host, server: Server, ranges: Path) -> None:
        """Who asks from a user namespace of its own, as a rootless engine would, has other ids than are seen here."""
        under = ("unshare", "--user", "--map-root-user")
        with asking("--config-file=/none", etc=ranges, under=under) as engine:
            assert "in a user namespace of its own" in self.refused(host, server, engine)

    def test_a_name(self, host: Host, server: Server, engine: Asking) -> None:
        """A name without ranges is refused where it is given, by this host's files."""
        assert "userns nobody-here cannot be told" in self.refused(host, server, engine, userns="nobody-here")

    def test_another_process(self) -> None:
        """A process that began after the connection only has the number of the one that made it."""
        assert dockerd.of_peer(os.getpid(), dockerd.now()) is None  # neither Docker nor Podman
        with pytest.raises(Invalid, match="No such process"):
            dockerd.of_peer(os.getpid(), 1.0)

    def test_another_pid_namespace(self) -> None:
        """Who cannot be seen cannot be told."""
        with pytest.raises(Invalid, match="cannot be told"):
            dockerd.of_peer(0, time.clock_gettime(time.CLOCK_BOOTTIME))


class TestHost:
    """`userns=host`: the numbers are the host's, as for containers with `--userns=host`."""

    def test_option(self, host: Host, server: Server, engine: Asking) -> None:
        """The option counts on an engine with userns-remap, and warns of nothing."""
        assert engine(server.socket, "Create", Name="mongo", Opts=IDS | {"userns": "host"}).status == 200
        assert owner(host.data("mongo")) == (184, 998)
        status = engine(server.socket, "Get", Name="mongo").body["Volume"]["Status"]
        assert (status["ready"], status["warnings"], "host_uid" in status) == (True, [], False)

    def test_setting(self, host: Host, engine: Asking) -> None:
        """The setting is for volumes without the option; `auto` is then an option like another."""
        server = host.serve(HOSTPREP_USERNS="host")
        assert engine(server.socket, "Create", Name="mongo", Opts=IDS).status == 200
        assert engine(server.socket, "Create", Name="other", Opts=IDS | {"userns": "auto"}).status == 200
        assert [owner(host.data(name)) for name in ("mongo", "other")] == [(184, 998), (231256, 300998)]
        assert engine(server.socket, "Get", Name="mongo").body["Volume"]["Status"]["warnings"] == []


class TestAnotherEngine:
    """A Mount by an engine with another map."""

    def test_warning(self, host: Host, server: Server, engine: Asking, ranges: Path) -> None:
        """It is told in Status and in the log, and no owner is changed: two engines would do so in turn."""
        engine(server.socket, "Create", Name="mongo", Opts=IDS)
        with asking("--config-file=/none", etc=ranges) as other:
            assert other(server.socket, "Mount", Name="mongo", ID="c" * 64).status == 200
            (warning,) = other(server.socket, "Get", Name="mongo").body["Volume"]["Status"]["warnings"]
        assert owner(host.data("mongo")) == (231256, 300998)
        assert "prepared for containers whose ids are 0:231072:1000" in warning
        assert "hostprep apply mongo -o userns=auto" in warning
        assert f"mount of mongo: {warning}" in server.log

    def test_a_record_from_before(self, host: Host, engine: Asking) -> None:
        """What is in an older root stays as it is, byte for byte, on an engine with userns-remap, too."""
        with_numbers = {"old": IDS, "mapped": {"uid": "231256", "gid": "300998"}, "plain": {}}
        for name, options in with_numbers.items():
            assert host.run("create", name, *(f"-o{key}={value}" for key, value in options.items())).code == 0
        before = state(host.root)
        server = host.serve()
        warned = {}
        for name in with_numbers:
            for verb in ("Mount", "Unmount"):
                assert engine(server.socket, verb, Name=name, ID="c" * 64).status == 200
            warned[name] = engine(server.socket, "Get", Name=name).body["Volume"]["Status"]["warnings"]
        assert {name: len(lines) for name, lines in warned.items()} == {"old": 1, "mapped": 0, "plain": 0}
        assert state(host.root) == before


def state(root: Path) -> dict[str, object]:
    """All that is in the volumes: owners, modes, contents, and inodes, so that nothing was replaced either."""
    found: dict[str, object] = {}
    for path in sorted((root / "volumes").rglob("*")):
        st = path.lstat()
        found[str(path)] = st.st_uid, st.st_gid, st.st_mode, st.st_ino, path.read_bytes() if path.is_file() else None
    return found


class TestThisHost:
    """Where no engine asks, as on the command line, the engines of this host count."""

    SHOW = "from hostprep.errors import Invalid; from hostprep.host.dockerd import of_host\n" + (
        "try: print(of_host())\nexcept Invalid as exc: print(exc)"
    )

    def test_the_engine_that_runs(self, engine: Asking) -> None:
        """The one that runs in the same mount namespace counts; one elsewhere may be a container's."""
        assert engine.beside(PYTHON, "-c", self.SHOW) == f"{REMAP['uid']} (groups {REMAP['gid']})"
        assert dockerd.of_host() == HOST

    def test_a_user_who_takes_the_name(self, ranges: Path, data: Path) -> None:
        """A process of a user's can be called dockerd, too, with any command line: it is no engine of this host."""
        words = ("--userns-remap=lab", f"--data-root={data}")
        under = ("setpriv", "--reuid=1500", "--clear-groups")
        show = "from hostprep.host import dockerd; print(dockerd.of_running(), [*dockerd.running('dockerd')])"
        with asking(*words, etc=ranges, under=under) as user:
            assert user.beside(PYTHON, "-c", show) == "None []"

    def test_none(self, ranges: Path) -> None:
        """Where none runs it is the one that would, by its configuration file."""
        with asking(etc=ranges, name="sleep") as nobody:
            assert nobody.beside(PYTHON, "-c", self.SHOW) == str(HOST)

    def test_command(self, host: Host, engine: Asking) -> None:
        """create and apply by the command line; the contents follow when the map changes."""
        command = ["env", *(f"{key}={value}" for key, value in host.environ.items()), PYTHON, "-m", "hostprep"]
        assert engine.beside(*command, "create", "mongo", "-ouid=184", "-ogid=998").splitlines()[0] == "mongo"
        data = host.data("mongo")
        (data / "file").touch()
        os.chown(data / "file", 231256, 300998)
        assert re.search("^on host: +231256:300998$", engine.beside(*command, "status", "mongo"), re.MULTILINE)
        for options, there in [
            (["-ouserns=host"], (184, 998)),
            (["-ouserns=lab"], (231256, 300998)),
            (["-ouid=0"], (231072, 300998)),  # the map stays
            (["-ouserns=host", "-ouid=70000"], (70000, 998)),
            (["--unset=userns", "-ouid=184"], (231256, 300998)),
        ]:
            assert engine.beside(*command, "apply", "mongo", *options).splitlines()[0] == "mongo"
            assert owner(data) == owner(data / "file") == there
        assert "have no 70000" in engine.beside(*command, "apply", "mongo", "-ouid=70000")
        assert record(host, "mongo")["userns"] == REMAP


class TestSetting:
    """A map in HOSTPREP_USERNS, which names no engine: what happens to a volume that has one."""

    MAP = "0:100000:1000,1000:300000:64536"

    def test_restored(self, host: Host) -> None:
        """The trash keeps the map, whatever the setting is by then."""
        assert host.run("create", "mongo", "-ouid=1001", HOSTPREP_USERNS=self.MAP).code == 0
        assert host.run("rm", "mongo").code == 0
        assert host.run("restore", "mongo", "--as", "other").code == 0
        found = host.run("status", "other", "--json").json["status"]
        assert (found["uid"], found["host_uid"], found["ready"]) == (1001, 300001, True)

    def test_retained(self, host: Host) -> None:
        """Retained data keeps its map, unless the Create that takes it up gives another."""
        options = ["-ouid=1001", "-oon_remove=retain"]
        assert host.run("create", "mongo", *options, HOSTPREP_USERNS=self.MAP).code == 0
        for more, there in [([], 300001), (["-ouid=5"], 100005), (["-ouserns=host"], 5)]:
            assert host.run("rm", "mongo").code == 0
            assert host.run("create", "mongo", *more).code == 0
            assert owner(host.data("mongo"))[0] == there

    def test_by_path(self, host: Host) -> None:
        """A directory that is made, and one that is adopted, gets the host's numbers."""
        (host.srv / "there").mkdir()
        for name in ("there", "made"):
            done = host.run("create", name, f"-opath={host.srv}/{name}", "-ogid=1001", HOSTPREP_USERNS=self.MAP)
            assert done.code == 0, done.err
        assert owner(host.srv / "made") == (100000, 300001)
        assert owner(host.srv / "there") == (0, 300001)  # its user is declared nowhere

    def test_imported(self, host: Host, tmp_path: Path) -> None:
        """import gives the host's numbers, and a dry run shows them."""
        moved = tmp_path / "moved"
        moved.mkdir()
        (moved / "file").touch()
        assert host.run("create", "other").code == 0  # a dry run makes no root
        command = ("import", "--from", str(moved), "mongo", "-ouid=184", "-ogid=998")
        shown = host.run(*command, "--dry-run", HOSTPREP_USERNS=self.MAP)
        assert shown.err == ""
        assert "would change owner 0:0 -> 100184:100998" in shown.out
        assert host.run(*command, HOSTPREP_USERNS=self.MAP).code == 0
        assert owner(host.data("mongo")) == owner(host.data("mongo") / "file") == (100184, 100998)

    def test_foreign(self, host: Host) -> None:
        """What is foreign under path is told by the host's numbers, which ls -n shows."""
        (host.srv / "there").mkdir()
        (host.srv / "there/file").touch()
        assert host.run("create", "mongo", f"-opath={host.srv}/there", "-ouid=1", HOSTPREP_USERNS=self.MAP).code == 0
        (warning,) = host.run("status", "mongo", "--json").json["status"]["warnings"]
        assert "belong to others than user 100001" in warning

    def test_damaged(self, host: Host) -> None:
        """A map that hostprep cannot have written, or that lacks a declared id, makes a record unreadable."""
        assert host.run("create", "mongo", "-ouid=1001", HOSTPREP_USERNS=self.MAP).code == 0
        good = json.loads(host.record("mongo").read_text())
        for wrong in ({}, {"uid": self.MAP}, "host", {"uid": "0:1:5", "gid": "0:1:5"}, {"uid": "x", "gid": "0:1:5"}):
            host.record("mongo").write_text(json.dumps(good | {"userns": wrong}))
            assert "its record is damaged" in host.run("status", "mongo").err


class TestManaged:
    """The managed plugin sees no process of the host, and no /etc/subuid: only where its directory is."""

    SHOW = "from hostprep.errors import Invalid; from hostprep.host.dockerd import of_plugin\n" + (
        "from hostprep.host.userns import Remap; import sys\n"
        "try: print(of_plugin(Remap.parse(*sys.argv[1:]) if sys.argv[1:] else None))\nexcept Invalid as exc: print(exc)"
    )

    def show(self, tmp_path: Path, data: str, *told: str) -> str:
        """What it takes from the mount of its own directory below the engine's *data*."""
        place = tmp_path / data / "plugins" / ("a1" * 32) / "propagated-mount"
        place.mkdir(parents=True)
        script = f'mount --bind "{place}" "{host_point(tmp_path)}" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", PYTHON, "-c", self.SHOW, *told]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    def test_without_remap(self, tmp_path: Path) -> None:
        """Without userns-remap nothing has to be set."""
        assert self.show(tmp_path, "docker") == str(HOST)

    def test_it_has_to_be_set(self, tmp_path: Path) -> None:
        """With userns-remap the first ids are seen, and the setting is asked for."""
        assert "HOSTPREP_USERNS=0:100000:COUNT" in self.show(tmp_path, "docker/100000.100000")

    @pytest.mark.parametrize(
        ("told", "said"), [("0:100000:65536", "0:100000:65536"), ("0:200000:65536", "root is 100000:100000 on this")]
    )
    def test_told(self, tmp_path: Path, told: str, said: str) -> None:
        """What is set counts if it begins with the ids that are seen."""
        assert said in self.show(tmp_path, "docker/100000.100000", told, told)

    def test_the_setting(self, host: Host) -> None:
        """A name would have to be looked up in a file that is not there: setting and option refuse it."""
        managed = {"HOSTPREP_MANAGED": "1", "HOSTPREP_ROOT": "/var/lib/hostprep", "HOSTPREP_ALLOW": ""}
        managed |= {
            "HOSTPREP_KNOWN_ROOTS": "/etc/hostprep/roots",
            "HOSTPREP_SOCKET": "/run/docker/plugins/hostprep.sock",
        }
        done = host.run("ls", **managed, HOSTPREP_USERNS="lab")
        assert "HOSTPREP_USERNS cannot be a name for the managed plugin" in done.err


def host_point(directory: Path) -> Path:
    point = directory / "point"
    point.mkdir(exist_ok=True)
    return point
