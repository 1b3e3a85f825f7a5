"""dockerd's own record of a volume: create, restore, import and apply have its options and labels in it."""

from __future__ import annotations

import re
import select
import shlex
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from testbed.engine import Engine, Hostprep, environment, wait_for

from .client import OPTIONS, WRITE, Docker, owner

pytestmark = pytest.mark.engine
DECLARED = {"uid": "184", "gid": "998"}
LABELS = {"com.docker.compose.project": "shop", "com.docker.compose.volume": "db", "other": "it's"}
LABELLED = [word for key, value in LABELS.items() for word in ("--label", f"{key}={value}")]


class Telling:
    """The hostprep command with an engine that it may tell; what it says on stderr."""

    def __init__(self, docker: Docker, hostprep: Hostprep) -> None:
        self._docker = docker
        self._hostprep = hostprep

    def __call__(self, *arguments: str, host: str | None = None) -> str:
        flags = ("--log-level", "warning", "--docker-host", host or self._docker.engine.host)
        done = self._hostprep.command(*flags, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr.strip()

    def recorded(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """The options and labels in dockerd's record."""
        found = self._docker.inspect(name)
        return found["Options"] or {}, found["Labels"] or {}


@pytest.fixture
def telling(docker: Docker, hostprep: Hostprep) -> Telling:
    return Telling(docker, hostprep)


def printed(said: str) -> list[list[str]]:
    """The commands at the end of what hostprep says, in its parentheses."""
    line = re.fullmatch(r".* \(((?:docker|hostprep) .*)\)", said)
    assert line, said
    return [shlex.split(command) for command in line[1].split(" && ")]


def test_create(docker: Docker, telling: Telling) -> None:
    """What `hostprep create` makes, dockerd knows with its options, as if it had made it itself."""
    assert telling("create", "mongo", *OPTIONS) == ""
    assert telling.recorded("mongo") == (DECLARED, {})
    assert telling("create", "mongo") == ""
    assert telling.recorded("mongo") == (DECLARED, {})


def test_restore(docker: Docker, telling: Telling) -> None:
    """After a restore dockerd has the options again, and the labels that --label says."""
    docker.create("mongo", *OPTIONS, *LABELLED)
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")
    assert telling("restore", "mongo", *LABELLED) == ""
    assert telling.recorded("mongo") == (DECLARED, LABELS)
    assert docker.run("mongo:/data", "cat /data/file") == "written"


@pytest.mark.thorough
@pytest.mark.parametrize("now", ["the same options", "others", "another name"])
def test_labels_that_the_server_noted(
    docker: Docker, telling: Telling, hostprep: Hostprep, engine: Engine, now: str
) -> None:
    """Where the server may ask the engine, labels survive a restore without --label; also in what is printed."""
    hash_ = {"com.docker.compose.config-hash": "of these options"}
    hostprep.stop()
    hostprep.start(docker_host=engine.host)
    docker.create("mongo", *OPTIONS, *LABELLED, "--label", "com.docker.compose.config-hash=of these options")
    docker("volume", "create", "local-one", "--label", "other=one")
    wait_for((hostprep.root / "volumes/mongo/engine.json").exists, "the labels to be noted")
    if now == "others":
        hostprep.command("apply", "mongo", "-o", "uid=200")
    docker("volume", "rm", "mongo")
    if now == "another name":
        assert telling("restore", "mongo", "--as", "redis") == ""
        assert telling.recorded("redis") == (DECLARED, {})
    elif now == "others":
        assert telling("restore", "mongo", "--label", "other=new") == ""
        assert telling.recorded("mongo") == ({**DECLARED, "uid": "200"}, {**LABELS, "other": "new"})
    else:
        for command in printed(telling("restore", "mongo", host=f"unix://{engine.home}/nobody.sock")):
            docker(*command[1:])
        assert telling.recorded("mongo") == (DECLARED, {**LABELS, **hash_})


@pytest.mark.thorough
def test_restore_behind_the_engine(docker: Docker, telling: Telling) -> None:
    """hostprep rm and restore leave dockerd's record as it was, and its labels in it."""
    docker.create("mongo", *OPTIONS, *LABELLED)
    telling("rm", "mongo")
    assert telling("restore", "mongo") == ""
    assert telling.recorded("mongo") == (DECLARED, LABELS)


def test_made_anew(docker: Docker, telling: Telling) -> None:
    """The commands that Status prints for a volume that was made anew bring the old one back, with all its labels."""
    docker.create("mongo", *OPTIONS, *LABELLED)
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")
    docker.create("mongo", *OPTIONS, *LABELLED)
    docker("create", "--name", "later", "-v", "mongo:/data", "busybox", "cat", "/data/file")
    (said,) = docker.inspect("mongo")["Status"]["warnings"]
    for command in said.rpartition("then: ")[2].split(" && "):
        assert telling(*shlex.split(command)[1:]) == ""
    assert docker("start", "-a", "later") == "written"
    assert telling.recorded("mongo") == (DECLARED, LABELS)
    assert docker.inspect("mongo")["Status"]["warnings"] == []


def test_import(docker: Docker, telling: Telling) -> None:
    """A directory that was imported is recorded; where a local volume has the name, the printed commands do it."""
    docker("volume", "create", "local-one")
    docker("volume", "create", "database")
    docker.run("database:/data", WRITE, user="0:0")
    source = docker.mountpoint("database")
    assert telling("import", "--from", docker.mountpoint("local-one"), "one", *OPTIONS) == ""
    assert telling.recorded("one") == (DECLARED, {})
    said = telling("import", "--from", source, "database", *OPTIONS)
    assert "the engine has a volume of that name of driver local" in said
    for command in printed(said.replace("(when nothing in that is needed: ", "(")):
        docker(*command[1:])
    assert telling.recorded("database") == (DECLARED, {})
    assert docker.run("database:/data", "cat /data/file") == "written"


def test_apply(docker: Docker, telling: Telling, hostprep: Hostprep) -> None:
    """apply has dockerd forget the old options and record the new; data, labels and time of creation stay."""
    hash_ = "com.docker.compose.config-hash"
    mountpoint = docker.create("mongo", *OPTIONS, *LABELLED, "--label", f"{hash_}=of-the-old-options")
    docker.run("mongo:/data", WRITE)
    before = docker.inspect("mongo")
    record = (hostprep.root / "volumes/mongo/volume.json").read_text()
    assert telling("apply", "mongo", "-o", "uid=200") == ""
    assert telling.recorded("mongo") == ({"uid": "200", "gid": "998"}, LABELS)
    after = docker.inspect("mongo")
    assert after["CreatedAt"] == before["CreatedAt"]
    assert after["Status"]["options"] == {"uid": "200", "gid": "998"}
    assert after["Status"]["warnings"] == []
    assert owner(Path(mountpoint) / "file") == (200, 998)
    assert (hostprep.root / "volumes/mongo/volume.json").read_text() == record.replace('"184"', '"200"')
    assert hostprep.command("ls", "--retained").stdout.splitlines() == ["NAME"]


def test_apply_to_what_is_inspected_already(docker: Docker, telling: Telling, hostprep: Hostprep) -> None:
    """A volume that dockerd took over without options, because it was looked at first, apply without options mends."""
    hostprep.command("create", "mongo", *OPTIONS, "-o", "on_remove=retain")
    assert telling.recorded("mongo") == ({}, {})
    assert telling("apply", "mongo") == ""
    assert telling.recorded("mongo") == ({**DECLARED, "on_remove": "retain"}, {})
    telling("apply", "mongo", "--unset", "on_remove")
    assert telling.recorded("mongo") == (DECLARED, {})


@pytest.mark.thorough
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_apply_to_what_is_used(docker: Docker, telling: Telling, hostprep: Hostprep, state: str) -> None:
    """While a container has the volume, dockerd keeps its record; apply says so, and what to do, which then works."""
    docker.create("mongo", *LABELLED, *OPTIONS)
    docker("run", "-d", "--name", "user", "-v", "mongo:/data", "busybox", "sleep", "600")
    if state == "stopped":
        docker("kill", "user")
    said = telling("apply", "mongo", "-o", "uid=200")
    assert "the engine keeps what it recorded of that volume before" in said
    assert telling.recorded("mongo") == (DECLARED, LABELS)
    assert "on_remove" not in (hostprep.root / "volumes/mongo/volume.json").read_text()
    docker("rm", "-f", "user")
    (again,) = re.findall(r", then: (hostprep apply mongo)\)", said)
    assert telling(*again.split()[1:]) == ""
    assert telling.recorded("mongo") == ({"uid": "200", "gid": "998"}, LABELS)


class Cut(socketserver.BaseRequestHandler):
    """Passes on what a client and the engine say, but ends the connection at a removal, before the engine knows."""

    engine: ClassVar[str]

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self.engine)
            other = {self.request: engine, engine: self.request}
            while True:
                for each in select.select([*other], [], [])[0]:
                    data = each.recv(65536)
                    if not data or data.startswith(b"DELETE "):
                        return
                    other[each].sendall(data)


def test_apply_where_the_engine_removes_later(
    docker: Docker, telling: Telling, hostprep: Hostprep, engine: Engine
) -> None:
    """Where the engine does not say whether it removes the volume, it may do so later: the data stays in place.

    What apply prints then makes the volume again what was declared.
    """
    docker.create("mongo", *OPTIONS)
    docker.run("mongo:/data", WRITE)
    cut, Cut.engine = str(engine.home / "cut.sock"), engine.host.removeprefix("unix://")
    with socketserver.ThreadingUnixStreamServer(cut, Cut) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        try:
            said = telling("apply", "mongo", "-o", "uid=200", host=f"unix://{cut}")
        finally:
            server.shutdown()
    Path(cut).unlink()
    docker("volume", "rm", "mongo")
    assert hostprep.command("ls", "--trash").stdout.splitlines() == ["NAME"]
    telling("create", "mongo")
    for command in printed(said):
        telling(*command[1:])
    assert telling.recorded("mongo") == ({"uid": "200", "gid": "998"}, {})
    assert docker.run("mongo:/data", "cat /data/file", user="200:998") == "written"


@pytest.mark.thorough
def test_apply_to_what_another_has(docker: Docker, telling: Telling, engine: Engine) -> None:
    """The engine is not asked to remove what somebody else has mounted, of whom it knows nothing."""
    mountpoint = docker.create("mongo")
    script = 'mount --bind "$0" /mnt; echo up; read end'
    holder = subprocess.Popen(
        engine.inside("unshare", "--mount", "sh", "-euc", script, mountpoint),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "up\n"
        assert "which is in use: process" in telling("apply", "mongo", "-o", "uid=200")
        assert telling.recorded("mongo") == (DECLARED, {})
        holder.communicate("\n", timeout=60)
    assert telling("apply", "mongo") == ""
    assert telling.recorded("mongo") == ({"uid": "200", "gid": "998"}, {})


@pytest.mark.thorough
@pytest.mark.parametrize("options", [OPTIONS, (*OPTIONS, "-o", "on_remove=retain")], ids=["to the trash", "retained"])
def test_no_engine(docker: Docker, telling: Telling, options: tuple[str, ...]) -> None:
    """Where no engine can be asked, what is printed does the same by hand."""
    declared = dict(word.split("=") for word in options if "=" in word)
    nobody = f"unix://{docker.engine.home}/nobody.sock"
    said = telling("create", "mongo", *options, host=nobody)
    assert "there is no engine" in said
    for command in printed(said):
        docker(*command[1:])
    assert telling.recorded("mongo") == (declared, {})
    docker.run("mongo:/data", WRITE)
    said = telling("apply", "mongo", "-o", "uid=200", host=nobody)
    for program, *arguments in printed(said):
        docker(*arguments) if program == "docker" else telling(*arguments, host=nobody)
    assert telling.recorded("mongo") == ({**declared, "uid": "200"}, {})
    assert docker.run("mongo:/data", "cat /data/file", user="200:998") == "written"
    telling("apply", "mongo", "--unset", "on_remove")


def test_quoted(docker: Docker, telling: Telling, allowed: Path) -> None:
    """Options of any characters are quoted for a shell in what is printed: one that runs it has the volume recorded."""
    path = allowed / "it's a\n\x01tab\tünd $(more)"
    path.mkdir()
    said = telling("create", "mongo", "-o", f"path={path}", host=f"unix://{docker.engine.home}/nobody.sock")
    assert said.isprintable()
    (command,) = re.findall(r" \((docker .*)\)", said)
    done = docker.engine.client("bash", "-c", command)
    assert done.returncode == 0, done.stderr
    assert telling.recorded("mongo") == ({"path": str(path)}, {})


@pytest.mark.thorough
def test_the_engine_of_another_root(docker: Docker, telling: Telling, hostprep: Hostprep) -> None:
    """An engine that has another hostprep is told nothing: its hostprep would make a volume of its own."""
    other = Hostprep(docker.engine)
    other.root = hostprep.root.parent / "other-root"
    made = other.command("--docker-host", docker.engine.host, "create", "mongo", *OPTIONS)
    assert (made.returncode, "no hostprep serves this volume to the engine" in made.stderr) == (0, True), made.stderr
    assert docker.volumes() == []
    docker.create("mongo", "-o", "uid=7")
    other.command("--docker-host", docker.engine.host, "apply", "mongo", "-o", "uid=8")
    assert telling.recorded("mongo") == ({"uid": "7"}, {})


def test_the_engine_of_another_root_at_the_same_path(
    docker: Docker, telling: Telling, hostprep: Hostprep, engine: Engine
) -> None:
    """As an engine in a container has it: its volume of the same name and place is not removed."""
    docker.create("mongo", "-o", "uid=7")
    docker.run("mongo:/data", WRITE, user="7:0")
    script = 'mount -t tmpfs -o mode=0700 tmpfs "$HOSTPREP_ROOT"; for each; do hostprep $each; done'
    script = script.replace("hostprep $each", f"{sys.executable} -m hostprep --docker-host {engine.host} $each")
    environ = environment({**hostprep.variables(), "HOSTPREP_KNOWN_ROOTS": f"{engine.home}/other.known"})
    commands = ["create mongo -o uid=7", "apply mongo -o uid=8"]
    inside = engine.inside("unshare", "--mount", "sh", "-c", script, "sh", *commands)
    done = subprocess.run(inside, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "no hostprep serves this volume to the engine" in done.stderr) == (0, True), done.stderr
    assert hostprep.command("ls", "--trash").stdout.splitlines() == ["NAME"]
    assert docker.run("mongo:/data", "cat /data/file", user="7:0") == "written"
