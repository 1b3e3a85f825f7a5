"""Three private engines with a hostprep each, which are one swarm.

Bridge and links are in the namespaces of the first engine, which go with it: the host sees none of them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from testbed import releases
from testbed.engine import Engine, Hostprep, Unavailable, environment, wait_for
from testbed.images import busybox

from .client import Docker

# Long: a node that is idle tells the managers what plugins it has every 20 seconds, and the machine may be loaded.
PATIENCE = 90


@dataclass(frozen=True)
class Node:
    """A member of the swarm. The first one is the only manager."""

    engine: Engine
    hostprep: Hostprep
    docker: Docker
    address: str

    @property
    def id(self) -> str:
        return self.docker("info", "--format", "{{.Swarm.NodeID}}")

    def restart(self) -> None:
        """Stop dockerd in good order, and start it again."""
        self.engine.stop()
        self.engine.start()

    def activate(self) -> None:
        """Let dockerd find hostprep, as any list of volumes does."""
        self.docker("volume", "ls")


class Swarm:
    """The nodes, and what the manager says of services."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.ids = [node.id for node in nodes]
        self.docker = nodes[0].docker

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """The tasks that are to run, as `docker inspect` has them."""
        listed = self.docker.engine.client("docker", "service", "ps", "-q", "-f", "desired-state=running", service)
        if not (tasks := listed.stdout.split()):
            return []
        # A task may be gone by now: then the others are told, and the status is 1.
        found = json.loads(self.docker.engine.client("docker", "inspect", "--type", "task", *tasks).stdout)
        assert isinstance(found, list)
        return found

    def running(self, service: str) -> list[int]:
        """How many tasks run on each node."""
        at = [task.get("NodeID") for task in self.tasks(service) if task["Status"]["State"] == "running"]
        return [at.count(node) for node in self.ids]

    def wait(self, service: str, wanted: list[int]) -> None:
        """Wait until as many tasks as *wanted* run on each node."""
        try:
            wait_for(lambda: self.running(service) == wanted, f"tasks of {service} to run", PATIENCE)
        except TimeoutError as exc:
            told = self.docker("service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", service)
            raise AssertionError(f"{exc}: {self.running(service)} instead of {wanted}:\n{told}") from None

    def plugins(self, number: int) -> list[str]:
        """The volume drivers that the manager knows a node to have."""
        (node,) = json.loads(self.docker("node", "inspect", self.ids[number]))
        return [each["Name"] for each in node["Description"]["Engine"]["Plugins"] if each["Type"] == "Volume"]

    def remove_everything(self) -> None:
        """Remove all services, containers and volumes."""
        if services := self.docker("service", "ls", "-q").split():
            self.docker("service", "rm", *services)
        for node in self.nodes:
            node.docker.remove_everything()


@contextlib.contextmanager
def three_nodes(**settings: str) -> Iterator[Swarm]:
    """Make a swarm of three, with *settings* of hostprep's. Unavailable where there are no engines or bridges."""
    with contextlib.ExitStack() as undo:
        nodes = []
        for number in range(3):
            engine = undo.enter_context(Engine(releases.tree()))
            hostprep = undo.enter_context(Hostprep(engine, **settings))
            nodes.append(Node(engine, hostprep, Docker(engine), f"10.98.0.{number + 1}"))
        connect([(node.engine, node.address) for node in nodes])
        image = busybox()
        for node in nodes:
            node.docker("import", "-", "busybox", stdin=image)
            node.activate()
        first, *others = nodes
        first.docker("swarm", "init", "--advertise-addr", first.address)
        token = first.docker("swarm", "join-token", "-q", "worker")
        for node in others:
            node.docker("swarm", "join", "--advertise-addr", node.address, "--token", token, first.address)
        yield Swarm(nodes)


def connect(nodes: list[tuple[Engine, str]]) -> None:
    """Put the engines on one network, a bridge in the namespace of the first, with these addresses of a /24."""
    (first, address), *others = nodes
    ip(first, "link add swarm type bridge")
    ip(first, f"address add {address}/24 dev swarm")
    for number, (engine, address) in enumerate(others):
        ip(first, f"link add node{number} type veth peer name eth0 netns {engine.pid}")
        ip(first, f"link set node{number} master swarm up")
        ip(engine, f"address add {address}/24 dev eth0")
        ip(engine, "link set eth0 up")
    ip(first, "link set swarm up")
    for engine, _ in nodes:
        ip(engine, "link set lo up")


def ip(engine: Engine, command: str) -> None:
    """Run ip(8) with the interfaces of *engine*, and the host's process numbers."""
    argv = ["nsenter", "--target", str(engine.pid), "--net", "ip", *command.split()]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise Unavailable(f"ip {command}: {done.stderr.strip()}")
