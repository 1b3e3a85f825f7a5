"""A real database, as the user that its own package made."""

from __future__ import annotations

import os

import pytest

from testbed.engine import Engine, Unavailable, wait_for

from . import redis
from .client import Docker, owner

pytestmark = pytest.mark.engine
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    try:
        tar = redis.image()
    except Unavailable as exc:
        pytest.skip(str(exc))
    return Docker(engine)("import", "-", "redis", stdin=tar.read_bytes())


def start(docker: Docker, ids: str) -> None:
    flags = ("--name", "redis", "-u", ids, "-v", "cache:/var/lib/redis")
    docker("run", "-d", *flags, "redis", "redis-server", "--dir", "/var/lib/redis", *DURABLE)
    wait_for(lambda: ask(docker, "ping") == "PONG", "redis to answer")


def ask(docker: Docker, *words: str) -> str:
    return docker.engine.client("docker", "exec", "redis", "redis-cli", *words).stdout.strip()


@pytest.mark.usefixtures("image")
def test_redis(docker: Docker) -> None:
    """redis-server writes, its container is removed, a new one reads back; killed once, stopped once."""
    uid, gid = docker("run", "--rm", "redis", "sh", "-c", "id -u redis; id -g redis").split()
    mountpoint = docker.create("cache", "-o", f"uid={uid}", "-o", f"gid={gid}", "-o", "mode=0750")

    start(docker, f"{uid}:{gid}")
    assert ask(docker, "set", "greeting", "hello") == "OK"
    docker("rm", "-f", "redis")

    start(docker, f"{uid}:{gid}")
    assert ask(docker, "get", "greeting") == "hello"
    assert ask(docker, "append", "greeting", " again") == "11"
    docker("stop", "redis")
    docker("rm", "redis")

    start(docker, f"{uid}:{gid}")
    assert ask(docker, "get", "greeting") == "hello again"
    found = [os.path.join(top, name) for top, dirs, files in os.walk(mountpoint) for name in (*dirs, *files)]
    assert found
    assert {owner(path) for path in (mountpoint, *found)} == {(int(uid), int(gid))}
