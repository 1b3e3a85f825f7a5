"""`hostprep probe` on real images: what it finds, and that the commands it prints work when pasted."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.engine import PATH, TOP, Engine, Hostprep, environment, wait_for
from testbed.images import Entry

from .client import Docker, owner
from .probed import MADE, USERS, made, scratch

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def images(engine: Engine) -> Iterator[Docker]:
    """The images of MADE, on the engine."""
    docker = Docker(engine)
    for name, image in MADE.items():
        changes = [word for change in image.changes for word in ("--change", change)]
        docker("import", *changes, "-", name, stdin=made(name))
    yield docker
    docker("rmi", "-f", *MADE)


@pytest.fixture
def probe(docker: Docker, images: Docker, hostprep: Hostprep) -> Iterator[Probe]:
    """`hostprep probe`. It leaves neither container nor volume behind, whatever happens."""
    yield Probe(docker, hostprep)
    assert docker("ps", "-aq", "--filter", "label=hostprep.probe") == ""


class Probe:
    """The command, asking the private engine."""

    def __init__(self, docker: Docker, hostprep: Hostprep) -> None:
        self.docker = docker
        self.hostprep = hostprep

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.hostprep.command("--docker-host", self.docker.engine.host, "probe", *arguments)

    def found(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def fails(self, *arguments: str) -> str:
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        return line


def paste(docker: Docker, command: str, *more: str) -> str:
    """Run a printed command."""
    program, *words = shlex.split(command)
    assert program == "docker"
    return docker(*words, *more)


@pytest.mark.parametrize("name", MADE)
def test_user_and_owners(probe: Probe, name: str) -> None:
    """It finds the image's user and groups, and the owner of a volume at each VOLUME; nothing was run."""
    found = probe.found(name)

    assert (found["user"]["uid"], found["user"]["gid"]) == MADE[name].runs_as
    assert tuple(found["user"]["groups"]) == MADE[name].groups
    owners = {each["path"]: (each["options"]["uid"], each["options"]["gid"]) for each in found["directories"]}
    assert owners == {path: (str(uid), str(gid)) for path, (uid, gid) in MADE[name].owners.items()}
    assert probe.docker.containers() == []
    assert probe.docker.volumes() == []


@pytest.mark.parametrize("name", MADE)
def test_same_user_as_the_engine(probe: Probe, name: str) -> None:
    """It finds the user and groups that the engine runs the image as."""
    found = probe.found(name)["user"]
    printed = probe.docker("run", "--rm", "--entrypoint", "sh", name, "-c", "id -u; id -g; id -G")
    uid, gid, groups = printed.splitlines()
    assert (found["uid"], found["gid"]) == (int(uid), int(gid))
    assert {found["gid"], *found["groups"]} == set(map(int, groups.split()))


@pytest.mark.parametrize("name", MADE)
def test_printed_commands(probe: Probe, hostprep: Hostprep, name: str) -> None:
    """With the printed commands the image's program writes, as the user that was found."""
    docker, found = probe.docker, probe.found(name)
    volumes = [paste(docker, command) for command in found["create"]]
    assert len(volumes) == len(MADE[name].owners)

    container = paste(docker, found["run"])

    assert docker("wait", container) == "0", docker("logs", container)
    written = [hostprep.root / "volumes" / volume / "_data" / "file" for volume in volumes]
    assert [path.read_text() for path in written] == ["written\n"] * len(volumes)
    assert [owner(path.parent) for path in written] == list(MADE[name].owners.values())
    uid = next(iter(MADE[name].owners.values()))[0]
    assert docker("logs", container) == str(uid)


@pytest.mark.parametrize("name", ["user-name", "volumes", "switches"])
def test_compose(probe: Probe, hostprep: Hostprep, tmp_path: Path, name: str) -> None:
    """With the printed Compose file the image's program writes."""
    if not probe.docker.engine.has("docker-compose"):
        pytest.skip("docker-compose is not installed")
    found = probe.found(name)
    file = ["docker-compose", "-p", "probed", "-f", str(tmp_path / "compose.yaml")]
    # Without a bridge the engine has no network to give.
    text = found["compose"].replace("    volumes:", "    network_mode: none\n    volumes:", 1)
    (tmp_path / "compose.yaml").write_text(f'version: "3.8"\n{text}\n')

    done = probe.docker.engine.client(*file, "up", "--exit-code-from", name)

    assert done.returncode == 0, done.stdout + done.stderr
    for volume in hostprep.root.glob("volumes/probed_*"):
        assert (volume / "_data" / "file").read_text() == "written\n"
    assert probe.docker.engine.client(*file, "down", "-v").returncode == 0


def test_text(probe: Probe) -> None:
    """In a pipe user, reason and commands are plain text."""
    done = probe("switches")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "/var/lib/db\t999:998\t0700\tno\tuid=999 gid=998" in lines
    assert any("starts as root" in line and "999:998 (db)" in line for line in lines)
    assert "docker volume create -d hostprep -o uid=999 -o gid=998 switches" in lines
    assert "docker run -d -v switches:/var/lib/db switches" in lines


def test_content(probe: Probe) -> None:
    """It tells a directory's owner, mode and whether it has content; a missing one is null."""
    data, missing = probe.found("volumes")["directories"]
    assert data["found"] == {"uid": 1000, "gid": 1001, "mode": "0750", "content": True}
    assert missing["found"] is None


def test_user_flag(probe: Probe, hostprep: Hostprep) -> None:
    """--user takes the place of USER, and is in the command that is printed."""
    found = probe.found("user-name", "--user", "db")

    assert (found["user"]["uid"], found["user"]["gid"]) == (999, 998)
    assert found["run"] == "docker run -d -u db -v user-name:/data user-name"
    for command in found["create"]:
        paste(probe.docker, command)
    container = paste(probe.docker, found["run"])
    assert probe.docker("wait", container) == "0"
    assert owner(hostprep.root / "volumes/user-name/_data/file")[0] == 999


def test_path_flag(probe: Probe) -> None:
    """--path asks for a directory besides the VOLUMEs."""
    found = probe.found("user-none", "--path", "/tmp", "--path", "/data")
    assert [each["path"] for each in found["directories"]] == ["/data", "/tmp"]
    assert found["directories"][1]["found"]["mode"] == "01777"


def test_from_nothing(probe: Probe) -> None:
    """An image without passwd and program is probed by its numbers; a note says what is missing."""
    docker = probe.docker
    changes = ("--change", "USER 5", "--change", "VOLUME /data")
    docker("import", *changes, "-", "bare", stdin=scratch(Entry("data", 0o700, 5, 6)))
    found = probe.found("bare")
    assert (found["user"]["uid"], found["user"]["gid"]) == (5, 0)
    assert found["directories"][0]["options"] == {"uid": "5", "gid": "6"}
    assert any("no program" in note for note in found["notes"])
    # The engine makes such a container where a program is named.
    for command in found["create"]:
        paste(docker, command)
    docker("create", *shlex.split(found["run"])[3:], "/none")


def test_a_name_without_passwd(probe: Probe) -> None:
    """A USER by name in an image without passwd is refused as the engine refuses it."""
    probe.docker("import", "--change", "USER app", "-", "nameless", stdin=scratch(Entry("data", 0o700)))
    assert '"app"' in probe.fails("nameless")
    assert "passwd" in probe.docker.fails("run", "--rm", "nameless", "true")


def test_symlinks(probe: Probe) -> None:
    """Links are followed within the image and lead no higher than its top, and passwd may be one."""
    links = {"etc/passwd": "../../../../srv/users", "data": "/../../srv/real", "round": "round"}
    files = scratch(
        Entry("etc", 0o755),
        Entry("srv", 0o755),
        Entry("srv/users", 0o644, content=USERS),
        Entry("srv/real", 0o700, 999, 998),
        links=links,
    )
    probe.docker("import", "--change", "USER app", "-", "linked", stdin=files)
    (found,) = probe.found("linked", "--path", "/data")["directories"]
    assert (found["real"], found["links"]) == ("/srv/real", ["/data -> /../../srv/real"])
    assert found["found"]["uid"] == 999
    assert "links" in probe.fails("linked", "--path", "/round/x")


def test_absent(probe: Probe) -> None:
    """For an image that is not there it says how to pull it, and pulls nothing."""
    line = probe.fails("nowhere/absent:7")
    assert "docker pull nowhere/absent:7" in line
    assert "--pull" in line


def test_archive(probe: Probe, tmp_path: Path) -> None:
    """An archive of docker save, plain or compressed, gives the same result as the engine."""
    file = tmp_path / "image.tar"
    probe.docker("save", "-o", str(file), *MADE)
    subprocess.run(["gzip", "-k", str(file)], check=True)
    for name in MADE:
        asked = probe.found(name)
        for path in (file, file.with_suffix(".tar.gz")):
            done = probe.hostprep.command("probe", name, "--archive", str(path), "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout) == asked


def test_built_image(probe: Probe, tmp_path: Path) -> None:
    """Of several layers the last one counts, in the engine and in an archive; removed files are absent."""
    (tmp_path / "Dockerfile").write_text(
        "FROM user-name\nUSER root\nRUN mkdir /gone /opaque && touch /gone/file /opaque/file\n"
        "RUN rm -r /gone && rm -r /opaque && mkdir /opaque && chown db:db /data\nUSER db\n"
    )
    docker = probe.docker
    docker("build", "--network", "none", "-t", "built", str(tmp_path))
    paths = ("--path", "/gone", "--path", "/opaque")
    asked = probe.found("built", *paths)
    assert [each["found"] and each["found"]["content"] for each in asked["directories"]] == [False, None, False]
    assert asked["directories"][0]["options"] == {"uid": "999", "gid": "998"}
    docker("save", "-o", str(tmp_path / "image.tar"), "built")
    done = probe.hostprep.command("probe", "built", "--archive", str(tmp_path / "image.tar"), *paths, "--json")
    assert json.loads(done.stdout) == asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: signal.Signals(number).name)
def test_interrupted(probe: Probe, number: signal.Signals) -> None:
    """A probe that is interrupted at any moment leaves no container."""
    engine = probe.docker.engine
    for tenths in range(1, 9):
        argv = engine.inside(*_command(engine, "volumes", *(w for n in range(20) for w in ("--path", f"/bin/{n}"))))
        process = subprocess.Popen(
            argv, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        time.sleep(tenths / 10)
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        wait_for(lambda: not probe.docker.containers(), "the container to be removed", 60)


def _command(engine: Engine, *arguments: str) -> list[str]:
    return [
        "env", f"PYTHONPATH={TOP}/plugin", sys.executable, "-m", "hostprep", "--docker-host", engine.host, "probe",
        *arguments
    ]  # fmt: skip


@pytest.fixture(scope="module")
def registry(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry at a loopback address of the engine's own network namespace."""
    if not shutil.which("docker-registry", path=PATH):
        pytest.skip("docker-registry is not installed")
    directory = tmp_path_factory.mktemp("registry")
    (directory / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {directory}/data\nhttp:\n  addr: 127.0.0.1:5000\n"
    )
    engine.run("busybox", "ip", "link", "set", "lo", "up")
    process = engine.spawn(["docker-registry", "serve", str(directory / "config.yml")], log=directory / "log")
    docker = Docker(engine)
    docker("tag", "busybox", "127.0.0.1:5000/team/pulled:7")
    wait_for(lambda: "listening" in (directory / "log").read_text(), "the registry to listen")
    docker("push", "127.0.0.1:5000/team/pulled:7")
    docker("rmi", "127.0.0.1:5000/team/pulled:7")
    yield "127.0.0.1:5000/team"
    process.stop()


def test_pull(probe: Probe, registry: str) -> None:
    """--pull has the engine pull a missing image, and probes it."""
    probe.fails(f"{registry}/pulled:7")
    found = probe.found(f"{registry}/pulled:7", "--pull")
    assert found["image"] == f"{registry}/pulled:7"
    probe.docker("rmi", f"{registry}/pulled:7")


def test_pull_of_an_unknown_image(probe: Probe, registry: str) -> None:
    """If the pull fails, the error gives the engine's reason."""
    line = probe.fails(f"{registry}/other", "--pull")
    assert f"{registry}/other:latest cannot be pulled" in line
