"""The life of the managed plugin on a real engine: whatever is done to it, data and volumes are there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import PATH, Engine, Hostprep, wait_for
from tests.engine.client import WRITE, Docker, mode, owner

from .building import build
from .conftest import DATA, DRIVER, NAME, Built, Plugin, on_host

pytestmark = pytest.mark.engine


def data(plugin: Plugin, name: str = "mongo") -> Path:
    """Where the host has what is in a volume."""
    return plugin.root / "volumes" / name / "_data"


class TestUse:
    def test_volume(self, docker: Docker, plugin: Plugin) -> None:
        """A container writes to a volume of its own uid and gid, and the data is in the host's directory."""
        docker.create("mongo", "-o", "uid=184", "-o", "gid=998", "-o", "mode=0750")

        assert docker.run("mongo:/data", WRITE) == "written"

        assert (data(plugin) / "file").read_text() == "written\n"
        assert (owner(data(plugin)), mode(data(plugin))) == ((184, 998), "0750")
        found = docker.inspect("mongo")
        assert (found["Driver"], found["Status"]["ready"]) == (DRIVER, True)

    def test_copy_up(self, docker: Docker, plugin: Plugin) -> None:
        """What Docker's copy-up does to the root of a volume is mended, as everywhere."""
        docker.create("mongo", "-o", "uid=184", "-o", "gid=998", "-o", "mode=0700")
        docker.run("mongo:/etc", "true", user="0:0")

        assert (data(plugin) / "passwd").exists()
        assert (owner(data(plugin)), mode(data(plugin))) == ((184, 998), "0700")

    def test_recurse(self, docker: Docker, plugin: Plugin) -> None:
        """A whole tree is mended, by several processes, of which none is left; no capability is needed."""
        docker.create("mongo")
        for number in range(100):
            directory = data(plugin) / f"{number}/a/b"
            directory.mkdir(parents=True)
            for each in range(30):
                (directory / f"{each}").touch()
        os.chown(data(plugin), 0, 0)

        assert docker.run("mongo:/data", "find /data ! -user 184 -o ! -group 998") == ""

        assert {owner(path) for path in data(plugin).rglob("*")} == {(184, 998)}
        wait_for(lambda: len(plugin.processes()) == 1, "the processes of the pass to end")

    def test_orphans(self, plugin: Plugin) -> None:
        """A process whose parent ended before it, as those of a cancelled pass do, is not left as a zombie."""
        plugin.inside("for n in 1 2 3; do sleep 0.1 & done")

        def running() -> set[str]:
            named = plugin.inside('cat /proc/[0-9]*/comm; cut -d " " -f 3 /proc/[0-9]*/stat').stdout.split()
            return set(named) - {"sh", "cat", "cut", "S", "R", "D"}

        wait_for(lambda: "sleep" not in running(), "the processes to be gone")
        assert running() == {"tini", "hostprep"}  # and no Z

    def test_a_disk_below(self, docker: Docker, plugin: Plugin) -> None:
        """A container is not started on a volume in which a disk is mounted: dockerd 20.10 unmounts that one day."""
        docker.create("mongo")
        place = f"{DATA}/volumes/mongo/_data"
        plugin.disable()
        on_host(plugin.engine, "mount", "-t", "tmpfs", "tmpfs", place)
        plugin.enable()
        said = docker.fails("run", "--rm", "-v", "mongo:/data", "busybox", "true")
        plugin.disable()
        there = place in plugin.engine.mounts()
        if there:
            on_host(plugin.engine, "umount", place)
        plugin.enable()

        assert f"{place} is a mount: the engine could unmount it, on the host too" in said
        if docker("version", "--format", "{{.Server.Version}}").startswith("20.10."):
            assert not there
        assert docker.run("mongo:/data", WRITE) == "written"

    @pytest.mark.parametrize(
        ("option", "why"),
        [("path=/srv/mongo", "reaches no directory of the host"), ("image=busybox", "cannot reach an engine")],
    )
    def test_refused(self, docker: Docker, option: str, why: str) -> None:
        """path and image are refused in words that reach the user."""
        said = docker.fails("volume", "create", "-d", NAME, "-o", option, "mongo")
        assert f"option {option.partition('=')[0]}: the managed plugin {why}" in said
        assert docker.volumes() == []

    def test_trash(self, docker: Docker, plugin: Plugin) -> None:
        """A removed volume is restored by the command in the plugin, or by the host's on the same directory."""
        docker.create("mongo")
        docker.run("mongo:/data", WRITE)
        docker("volume", "rm", "mongo")

        assert plugin.inside("hostprep restore mongo").stdout == "mongo\n"

        assert docker.run("mongo:/data", "cat /data/file") == "written"
        docker("volume", "rm", "mongo")
        assert Hostprep(plugin.engine).command("restore", "mongo").returncode == 0
        assert docker.run("mongo:/data", "cat /data/file") == "written"

    def test_command(self, docker: Docker, plugin: Plugin) -> None:
        """The command in the plugin works on its volumes, and says which version it is."""
        docker.create("mongo")
        done = plugin.inside("hostprep --version; hostprep ls --json")
        version, listed = done.stdout.split("\n", 1)

        assert version in plugin.inspect()["Config"]["Description"]
        assert [volume["name"] for volume in json.loads(listed)] == ["mongo"]

    def test_capabilities(self, plugin: Plugin) -> None:
        """It has the capabilities that every container has, and no others; and no network."""
        (server,) = plugin.processes()
        status = plugin.engine.view(f"/proc/{server}/status").read_text()
        assert "CapEff:\t00000000a80425fb\n" in status  # chown, dac_override, fowner, fsetid, and so on: moby's default
        devices = plugin.engine.view(f"/proc/{server}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]


class TestSet:
    def test_a_setting(self, docker: Docker, plugin: Plugin) -> None:
        """A setting takes effect when the plugin is enabled again; while it is enabled nothing can be set."""
        assert "disable plugin before setting" in docker.fails("plugin", "set", NAME, "HOSTPREP_SCOPE=global")
        plugin.disable()
        plugin.set(scope="global", trash_keep="0")
        plugin.enable()

        docker.create("mongo")
        assert docker.inspect("mongo")["Scope"] == "global"
        docker("volume", "rm", "mongo")
        wait_for(lambda: os.listdir(plugin.root / "trash") == [], "the volume to be purged")

    @pytest.mark.parametrize("name", ["ROOT", "SOCKET", "ALLOW", "DOCKER_HOST", "MANAGED"])
    def test_what_cannot_be_set(self, docker: Docker, plugin: Plugin, name: str) -> None:
        """The engine refuses settings that the plugin does not have."""
        plugin.disable()
        assert "not found in the plugin configuration" in docker.fails("plugin", "set", NAME, f"HOSTPREP_{name}=/srv")

    def test_a_start_that_is_refused(self, plugin: Plugin) -> None:
        """What the plugin cannot have stops its start, with the reason; dockerd's log has what it prints."""
        done = plugin.inside("HOSTPREP_SELINUX=force hostprep serve")

        assert done.returncode == 1
        assert done.stderr.startswith("hostprep: HOSTPREP_SELINUX=force is not for the managed plugin")
        assert "hostprep: INFO serving /var/lib/hostprep" in plugin.log()


class TestAfterwards:
    """What was there before is there after it, and can be used."""

    @pytest.fixture
    def used(self, docker: Docker, plugin: Plugin) -> Iterator[None]:
        """A volume with data in it, and a container that goes on writing to it."""
        docker.create("mongo")
        docker.daemon("db", "mongo:/data", script="while :; do date >> /data/log; sleep 0.2; done")
        before = docker.inspect("mongo")
        yield
        log = data(plugin) / "log"
        wait_for(log.exists, "the container to write")
        after = docker.inspect("mongo")
        assert after["Status"]["ready"] is True
        assert {**after, "Status": None} == {**before, "Status": None}
        assert docker.run("mongo:/data", "tail -n 1 /data/log") != ""
        assert docker.volumes() == ["mongo"]

    def goes_on(self, plugin: Plugin) -> None:
        """The container still writes."""
        log = data(plugin) / "log"
        wait_for(log.exists, "the container to write")
        size = log.stat().st_size
        wait_for(lambda: log.stat().st_size > size, "the container to go on")

    @pytest.mark.usefixtures("used")
    def test_disabled(self, docker: Docker, plugin: Plugin) -> None:
        """Disabled by force, it leaves running containers as they are."""
        plugin.disable()
        self.goes_on(plugin)
        plugin.enable()
        self.goes_on(plugin)

    @pytest.mark.usefixtures("used")
    def test_killed(self, docker: Docker, plugin: Plugin) -> None:
        """A server that is killed is started again by the engine."""
        (server,) = plugin.processes()
        plugin.engine.run("kill", "-KILL", str(server))
        wait_for(lambda: {server} != set(plugin.processes()) and plugin.processes(), "the server to be back")
        assert docker.run("mongo:/data", WRITE) == "written"
        self.goes_on(plugin)

    @pytest.mark.usefixtures("used")
    def test_remembers(self, plugin: Plugin) -> None:
        """It remembers its root within itself, also while it is disabled."""
        identity = json.loads((plugin.root / "hostprep.json").read_text())["id"]
        known = plugin.rootfs / "etc/hostprep/roots/var%2Flib%2Fhostprep"
        assert json.loads(known.read_text())["id"] == identity
        plugin.disable()
        assert json.loads(known.read_text())["id"] == identity
        plugin.enable()
        self.goes_on(plugin)

    @pytest.mark.usefixtures("used")
    def test_removed(self, docker: Docker, plugin: Plugin, built: Built) -> None:
        """Removed by force and created again, from another build, it knows its volumes."""
        plugin("rm", "--force", NAME)
        self.goes_on(plugin)
        plugin("create", NAME, str(built.directory))
        plugin.enable()
        self.goes_on(plugin)

    @pytest.mark.usefixtures("used")
    def test_upgraded(self, docker: Docker, plugin: Plugin, pushed: str) -> None:
        """`docker plugin upgrade` brings a new version, with the settings that were set."""
        plugin.disable()
        plugin.set(trash_keep="48h")

        plugin("upgrade", "--grant-all-permissions", "--skip-remote-check", NAME, pushed)
        plugin.enable()

        assert f"as {pushed}\n" in (plugin.rootfs / "usr/lib/hostprep/build").read_text()
        assert "HOSTPREP_TRASH_KEEP=48h" in plugin.inspect()["Settings"]["Env"]
        self.goes_on(plugin)

    def test_installed(self, plugin: Plugin, pushed: str) -> None:
        """From a registry it is installed with one command, which asks for its one mount and nothing else."""
        install = ("docker", "plugin", "install", "--alias", "second", "--disable", pushed)
        asked = plugin.engine.client(*install, stdin=b"n\n")
        wanted = [line for line in asked.stdout.splitlines() if line.startswith(" - ")]
        assert wanted == [" - network: [none]", " - mount: [/var/lib/hostprep]"]


class TestEngine:
    @pytest.mark.parametrize("flags", [(), ("--live-restore",)], ids=["plain", "live-restore"])
    def test_restarted(self, docker: Docker, plugin: Plugin, engine: Engine, flags: tuple[str, ...]) -> None:
        """A restart of dockerd: a container with restart=always is up again, or has never stopped; so is the plugin."""
        if flags:
            engine.stop()
            engine.start(*flags)
        docker.create("mongo")
        docker.daemon("db", "mongo:/data", "--restart=always", script="date >> /data/log; sleep 600")
        wait_for((data(plugin) / "log").exists, "the container to write")

        engine.stop()
        engine.start(*flags)

        assert plugin.inspect()["Enabled"] is True
        assert "is in use" in docker.fails("plugin", "disable", NAME)  # without --force
        running = lambda: docker("ps", "--format", "{{.Names}}") == "db"  # noqa: E731
        wait_for(running, "the container to be up")
        assert docker.exec("db", WRITE) == "written"
        wait_for(lambda: len((data(plugin) / "log").read_text().splitlines()) == (1 if flags else 2), "its log")
        assert docker.run("mongo:/data", "cat /data/file") == "written"

    def test_killed(self, docker: Docker, plugin: Plugin, engine: Engine) -> None:
        """dockerd dies and comes back: the plugin does, too."""
        docker.create("mongo")
        docker.run("mongo:/data", WRITE)
        engine.kill()
        engine.start()
        assert docker.run("mongo:/data", "cat /data/file") == "written"


COMPOSE = """
version: "3.4"
services:
  database:
    image: busybox
    user: "184:998"
    network_mode: none
    volumes: ["mongo:/data"]
    command: ["sh", "-euc", "echo written >> /data/file"]
volumes:
  mongo:
    driver: %s
    driver_opts: { uid: "184", gid: "998", mode: "0750" }
"""


class TestCompose:
    @pytest.fixture
    def compose(self, engine: Engine) -> str:
        if not engine.has("docker-compose"):
            pytest.skip("docker-compose is not installed")
        return "docker-compose"

    @pytest.mark.parametrize("driver", [NAME, DRIVER])
    def test_forms(self, docker: Docker, plugin: Plugin, tmp_path: Path, compose: str, driver: str) -> None:
        """Both names do at the first up. At the second the first Compose takes only the one that the engine reports."""
        (tmp_path / "docker-compose.yml").write_text(COMPOSE % driver)
        up = (compose, "--project-name", "demo", "up", "--abort-on-container-exit")
        first, second = (plugin.engine.client(*up, cwd=tmp_path) for _ in range(2))
        version = plugin.engine.client(compose, "version", "--short").stdout

        assert first.returncode == 0, first.stderr
        assert (owner(data(plugin, "demo_mongo")), mode(data(plugin, "demo_mongo"))) == ((184, 998), "0750")
        if driver == DRIVER or not version.startswith("1."):
            assert second.returncode == 0, second.stderr
            assert (data(plugin, "demo_mongo") / "file").read_text() == "written\nwritten\n"
        else:
            assert "specifies driver hostprep, but a volume with the same name uses a different driver" in second.stderr
        plugin.engine.client(compose, "--project-name", "demo", "down", cwd=tmp_path)


@pytest.fixture(scope="session")
def registry(engine: Engine) -> Iterator[str]:
    """A registry of the engine's own, by address."""
    program = shutil.which("docker-registry", path=PATH)
    if not program:
        pytest.skip("docker-registry is not installed")
    with contextlib.suppress(Exception):
        engine.run("busybox", "ip", "link", "set", "lo", "up")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    directory = engine.home / "registry"
    directory.mkdir()
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    process = engine.spawn([program, "serve", str(config)], log=directory / "log")

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address.split(":")[1])), 1):
            return True
        return False

    wait_for(answers, "the registry to answer")
    yield address
    process.stop()


@pytest.fixture(scope="session")
def pushed(engine: Engine, registry: str) -> str:
    """The plugin in the registry, by `make plugin` and `make plugin-push`, and no more in the engine."""
    for target in ("plugin", "plugin-push"):
        build(engine, "make", "--silent", target, PLUGIN_NAME=f"{registry}/hostprep", PLUGIN_TAG="2")
    reference = f"{registry}/hostprep:2"
    Docker(engine)("plugin", "rm", reference)
    return reference
