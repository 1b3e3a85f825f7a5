"""Podman by the API of Docker's: `podman system service`, with the docker client, Compose and hostprep itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep, ask, environment, wait_for
from testbed.images import Entry, busybox

from ..client import IDS, OPTIONS, WRITE, Podman, mode, owner
from ..test_lifecycle import COMPOSE

pytestmark = pytest.mark.engine


class Service:
    """The clients of an engine, on Podman's socket."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.socket = engine.home / "podman.sock"
        self.host = f"unix://{self.socket}"

    def docker(self, *args: str) -> str:
        done = self.engine.client("docker", "--host", self.host, *args)
        assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    def compose(self, directory: Path, *args: str) -> None:
        flags = ("--host", self.host, "--project-name", "demo", "--project-directory", str(directory))
        done = self.engine.client("docker-compose", *flags, *args, cwd=directory)
        assert done.returncode == 0, f"docker-compose {' '.join(args)}: {done.stdout}{done.stderr}"


@pytest.fixture
def service(podman: Podman, engine: Engine) -> Iterator[Service]:
    service = Service(engine)
    argv = engine.beside("podman", "system", "service", "--time", "0", service.host)
    with (engine.home / "podman.log").open("ab") as log:
        process = subprocess.Popen(argv, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: ask(service.socket, "GET /_ping").startswith("HTTP/1.0 200"), "podman's service to answer")
        yield service
    finally:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        subprocess.run(["kill", child], check=True)
        process.wait(60)
        service.socket.unlink(missing_ok=True)


def test_docker_client(service: Service) -> None:
    """The docker client makes a volume and runs a container on it, with Podman."""
    service.docker("volume", "create", "--driver", "hostprep", *OPTIONS, "mongo")

    flags = ("--rm", "--network", "none", "-u", IDS, "-v", "mongo:/data")
    printed = service.docker("run", *flags, "busybox", "sh", "-euc", WRITE)

    assert printed == "written"
    (found,) = json.loads(service.docker("volume", "inspect", "mongo"))
    assert (found["Driver"], found["Options"]) == ("hostprep", {"uid": "184", "gid": "998"})


def test_volume_driver_of_mount(service: Service, podman: Podman) -> None:
    """Podman does not heed the volume-driver of the docker client's --mount, and makes a local volume."""
    mount = "type=volume,source=mongo,target=/data,volume-driver=hostprep,volume-opt=uid=184"

    service.docker("create", "--mount", mount, "busybox", "true")

    assert podman.inspect("mongo")["Driver"] == "local"


def test_compose(service: Service, podman: Podman, tmp_path: Path) -> None:
    """Compose makes the volume from driver_opts, uses it at the next up, and removes it with down -v."""
    (tmp_path / "docker-compose.yml").write_text(COMPOSE % '"0750"')
    for _ in range(2):
        service.compose(tmp_path, "up", "--abort-on-container-exit")

    mountpoint = podman.mountpoint("demo_mongo")
    assert (owner(mountpoint), owner(f"{mountpoint}/file"), mode(mountpoint)) == ((184, 998), (184, 998), "0750")
    assert Path(mountpoint, "file").read_text() == "written\nwritten\n"
    service.compose(tmp_path, "down", "--volumes")
    assert podman.volumes() == []


def test_images(service: Service, podman: Podman, hostprep: Hostprep, tmp_path: Path) -> None:
    """Podman shows an image's files with one owner for all: probe and `image` refuse that; an archive has them."""
    data = Entry("data", 0o750, 999, 998)
    podman("import", "--change", "VOLUME /data", "-", "app", stdin=busybox(data))
    hostprep.stop()
    hostprep.start(docker_host=service.host)
    service.docker("create", "--name", "shown", "--tmpfs", "/data", "app", "true")
    owners = service.engine.client("sh", "-c", "podman cp shown:/data - | tar --numeric-owner -tv").stdout
    assert " 0/0 " in owners
    podman("rm", "shown")

    probed = hostprep.command("--docker-host", service.host, "probe", "app")
    assert (probed.returncode, probed.stdout) == (1, "")
    assert "podman save" in probed.stderr
    assert "podman save" in podman.fails("volume", "create", "--driver", "hostprep", "-o", "image=app", "mongo")
    assert podman.containers() == podman.volumes() == []

    podman("save", "-o", str(tmp_path / "image.tar"), "app")
    probed = hostprep.command("probe", "--archive", str(tmp_path / "image.tar"), "--json")
    assert probed.returncode == 0, probed.stderr
    assert json.loads(probed.stdout)["directories"][0]["options"] == {"uid": "999", "gid": "998"}
    podman("rmi", "app")
