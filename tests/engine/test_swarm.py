"""Services of a swarm of three nodes, each with its own hostprep, as docs/swarm.md tells."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.engine import TOP, Engine, Unavailable, wait_for

from .client import IDS, owner
from .client import mode as mode_of
from .swarm import PATIENCE, Node, Swarm, three_nodes

pytestmark = pytest.mark.engine

PAGE = (TOP / "docs" / "swarm.md").read_text()
(STACK,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# Each task leaves its container's name, and ends at once when it is told to.
WRITE = "hostname >> /data/tasks; exec sleep 1000000"
SERVICE = ("--detach", "--no-resolve-image", "--network", "host", "--user", IDS, "--stop-signal", "KILL")


@pytest.fixture(scope="module")
def three() -> Iterator[Swarm]:
    try:
        with three_nodes() as swarm:
            yield swarm
            homes = [str(node.engine.home) for node in swarm.nodes]
    except Unavailable as exc:
        pytest.skip(str(exc))
    mounted = Path("/proc/self/mountinfo").read_text()
    assert [home for home in homes if Path(home).exists() or home in mounted] == []


@pytest.fixture
def swarm(three: Swarm) -> Iterator[Swarm]:
    """The swarm, with every node in use. After the test nothing of its services, containers and volumes is left."""
    yield three
    for node, id_ in zip(three.nodes, three.ids, strict=True):
        if not node.engine.answers():
            node.engine.stop()
            node.engine.start()
        if node.hostprep.changed or not node.hostprep.answers():
            node.hostprep.stop()
            node.hostprep.start()
            node.restart()
        three.docker("node", "update", "--availability", "active", id_)
    three.remove_everything()
    for node in three.nodes:
        assert [path.name for path in (node.hostprep.root / "volumes").iterdir()] == []
        assert [mount for mount in node.engine.mounts() if mount.startswith(f"{node.hostprep.root}/")] == []


def data(node: Node, volume: str) -> Path:
    """The directory of a volume, on the host."""
    return node.hostprep.root / "volumes" / volume / "_data"


def wait_for_lines(file: Path, number: int = 1) -> None:
    """Wait until tasks have written so many lines."""
    wait_for(lambda: file.exists() and len(file.read_text().splitlines()) >= number, f"lines in {file}", PATIENCE)


def serve(swarm: Swarm, name: str, volume: str, *flags: str, **more: str) -> None:
    """Make a service whose tasks write to a volume of hostprep's, as 184:998."""
    options = {"uid": "184", "gid": "998", "mode": "0750", **more}
    mount = f"type=volume,source={volume},target=/data,volume-driver=hostprep"
    mount += "".join(f",volume-opt={key}={value}" for key, value in options.items())
    swarm.docker("service", "create", *SERVICE, "--name", name, "--mount", mount, *flags, "busybox", "sh", "-c", WRITE)


def deploy(swarm: Swarm) -> None:
    """Deploy the stack of docs/swarm.md just as it is there, and wait until it runs once on each node."""
    swarm.docker("stack", "deploy", "--resolve-image", "never", "-c", "-", "demo", stdin=STACK.encode())
    swarm.wait("demo_app", [1, 1, 1])


def assert_prepared(swarm: Swarm, scope: str) -> None:
    """Each node has a volume of its own for the stack, as declared, and its task can write there."""
    for node in swarm.nodes:
        directory = data(node, "demo_data")
        assert (owner(directory), mode_of(directory)) == ((184, 998), "0750")
        wait_for_lines(directory / "log")
        assert owner(directory / "log") == (184, 998)
        told = node.docker.inspect("demo_data")
        assert told["Scope"] == scope
        assert told["Options"] == {"uid": "184", "gid": "998", "mode": "0750"}
        assert told["Status"]["ready"]


@pytest.mark.thorough
def test_stack(swarm: Swarm) -> None:
    """The stack of docs/swarm.md runs once on each node, on a volume made there, which stays when the stack goes."""
    deploy(swarm)

    assert_prepared(swarm, "local")
    swarm.docker("stack", "rm", "demo")
    wait_for(lambda: not any(node.docker.containers() for node in swarm.nodes), "the tasks to end", PATIENCE)
    assert [node.docker.volumes() for node in swarm.nodes] == [["demo_data"]] * 3


@pytest.mark.usefixtures("three")  # which says it where there are no engines
def test_scope_global() -> None:
    """With HOSTPREP_SCOPE=global `docker volume inspect` says so; nothing else is different, nor is anything shared."""
    with three_nodes(scope="global") as swarm:
        deploy(swarm)
        assert_prepared(swarm, "global")


def test_changed_options(swarm: Swarm) -> None:
    """A volume that is there keeps its options, whatever a service says: `hostprep apply` on the node changes them."""
    node, place = swarm.nodes[1], ("--constraint", f"node.id=={swarm.ids[1]}")
    serve(swarm, "old", "data", *place)
    swarm.wait("old", [0, 1, 0])

    serve(swarm, "new", "data", *place, mode="0700")
    swarm.wait("new", [0, 1, 0])

    assert mode_of(data(node, "data")) == "0750"
    done = node.hostprep.command("apply", "data", "-o", "mode=0700")
    assert done.returncode == 0, done.stderr
    assert mode_of(data(node, "data")) == "0700"


def test_refused(swarm: Swarm) -> None:
    """What a node's hostprep refuses is told with the task."""
    serve(swarm, "refused", "data", "--constraint", f"node.id=={swarm.ids[1]}", path="/srv/data")

    tasks = ("service", "ps", "--no-trunc", "--format", "{{.Error}}", "refused")
    wait_for(lambda: "HOSTPREP_ALLOW" in swarm.docker(*tasks), "the reason to be told", PATIENCE)
    assert swarm.nodes[1].docker.volumes() == []


def test_without_the_driver(swarm: Swarm) -> None:
    """A service that names a volume and not its driver gets a local volume where the node does not have it."""
    swarm.nodes[1].docker.create("data")
    mount = ("--mount", "type=volume,source=data,target=/data", "--mode", "global")

    swarm.docker("service", "create", *SERVICE, "--name", "bare", *mount, "busybox", "sleep", "1000000")

    swarm.wait("bare", [1, 1, 1])
    assert [node.docker.inspect("data")["Driver"] for node in swarm.nodes] == ["local", "hostprep", "local"]


def test_tasks_of_a_node(swarm: Swarm) -> None:
    """Tasks that start on a node together share the one volume that is made for them there."""
    node = swarm.nodes[1]
    before = node.hostprep.log.stat().st_size

    serve(swarm, "many", "shared", "--replicas", "6", "--constraint", f"node.id=={swarm.ids[1]}")

    swarm.wait("many", [0, 6, 0])
    directory = data(node, "shared")
    wait_for_lines(directory / "tasks", 6)
    assert (owner(directory), mode_of(directory)) == ((184, 998), "0750")
    assert node.docker.volumes() == ["shared"]
    said = re.findall(r" (Create|Mount) shared: (\w+)", node.hostprep.log.read_bytes()[before:].decode())
    assert said == [("Create", "ok")] + [("Mount", "ok")] * 6


def test_slots(swarm: Swarm) -> None:
    """With the task's slot in its name each task has a volume of its own, on the same node, which a label chooses."""
    swarm.docker("node", "update", "--label-add", "data=yes", swarm.ids[2])

    serve(swarm, "slots", "slot-{{.Task.Slot}}", "--replicas", "2", "--constraint", "node.labels.data==yes")

    swarm.wait("slots", [0, 0, 2])
    swarm.docker("node", "update", "--label-rm", "data", swarm.ids[2])
    assert sorted(swarm.nodes[2].docker.volumes()) == ["slot-1", "slot-2"]
    assert [owner(data(swarm.nodes[2], f"slot-{number}")) for number in (1, 2)] == [(184, 998)] * 2


@pytest.mark.thorough
def test_rescheduled(swarm: Swarm) -> None:
    """A task that moves to another node gets a new volume there, ready for it; its data stays where it was."""
    serve(swarm, "moving", "data", "--replicas", "1", "--constraint", f"node.id!={swarm.ids[0]}")
    wait_for(lambda: sum(swarm.running("moving")) == 1, "the task to run", PATIENCE)
    old = swarm.running("moving").index(1)
    new = 3 - old
    tasks = data(swarm.nodes[old], "data") / "tasks"
    wait_for_lines(tasks)

    swarm.docker("node", "update", "--availability", "drain", swarm.ids[old])

    swarm.wait("moving", [int(number == new) for number in range(3)])
    directory = data(swarm.nodes[new], "data")
    assert (owner(directory), mode_of(directory)) == ((184, 998), "0750")
    assert len(tasks.read_text().split()) == 1
    assert swarm.nodes[old].docker.volumes() == ["data"]


@pytest.mark.parametrize("end", [Engine.stop, Engine.kill])
def test_restarted(swarm: Swarm, end: Callable[[Engine], None]) -> None:
    """After a restart or crash of its dockerd a node's task comes back by itself; what was changed is mended first."""
    node = swarm.nodes[1]
    serve(swarm, "staying", "data", "--replicas", "1", "--constraint", f"node.id=={swarm.ids[1]}")
    swarm.wait("staying", [0, 1, 0])
    directory = data(node, "data")
    wait_for_lines(directory / "tasks")

    end(node.engine)
    os.chown(directory, 0, 0)
    node.engine.start()

    wait_for_lines(directory / "tasks", 2)
    swarm.wait("staying", [0, 1, 0])
    assert (owner(directory), mode_of(directory)) == ((184, 998), "0750")
    assert "hostprep" in node.docker("info", "--format", "{{.Plugins.Volume}}")  # without being asked for volumes


def test_a_node_without(swarm: Swarm) -> None:
    """A node whose engine has not met hostprep gets no task; once it has, the waiting task goes there."""
    node = swarm.nodes[2]
    node.hostprep.stop()
    node.restart()
    wait_for(lambda: swarm.plugins(2) == ["local"], "the manager to know", PATIENCE)

    serve(swarm, "everywhere", "data", "--replicas", "3", "--replicas-max-per-node", "1")
    swarm.wait("everywhere", [1, 1, 0])
    tasks = ("service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "everywhere")
    wait_for(lambda: "missing plugin on 1 node" in swarm.docker(*tasks), "the reason to be told", PATIENCE)
    assert swarm.docker(*tasks).count("Pending") == 1
    assert node.docker.volumes() == []

    node.hostprep.start()
    node.activate()

    swarm.wait("everywhere", [1, 1, 1])
    assert owner(data(node, "data")) == (184, 998)
