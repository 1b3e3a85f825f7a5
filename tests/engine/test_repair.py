"""What root puts into a volume whose root is right: it is told, and one command mends it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import OPTIONS, Docker, owner

pytestmark = pytest.mark.engine
USE = "cat /data/conf/main > /dev/null; echo more >> /data/conf/main"
Put = Callable[[Docker, Path, Path], None]


def cp(docker: Docker, data: Path, scratch: Path) -> None:
    """`docker cp` into a container that is stopped."""
    (scratch / "conf").mkdir(mode=0o700)
    (scratch / "conf" / "main").write_text("from outside\n")
    docker("cp", f"{scratch}/conf", "db:/data")


def tar(docker: Docker, data: Path, scratch: Path) -> None:
    """A backup of others' files that root unpacks on the host."""
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as backup:
        for name, kind, mode, content in (
            ("conf", tarfile.DIRTYPE, 0o700, b""),
            ("conf/main", b"0", 0o600, b"saved\n"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid, entry.size = kind, mode, 999, 999, len(content)
            backup.addfile(entry, io.BytesIO(content))
    text.seek(0)
    with tarfile.open(fileobj=text) as backup:
        backup.extractall(data, filter="fully_trusted")  # as root's tar does


@pytest.mark.parametrize("put", [cp, tar])
@pytest.mark.parametrize("kind", ["own", "never", "path"])
def test_put_by_root(docker: Docker, hostprep: Hostprep, allowed: Path, tmp_path: Path, put: Put, kind: str) -> None:
    """Status and doctor name it, `hostprep repair` mends it, the container can use it, and nothing is said any more."""
    options = {"own": [], "never": ["-o", "recurse=never"], "path": ["-o", f"path={allowed / f'put-{put.__name__}'}"]}
    data = Path(docker.create("mongo", *OPTIONS, *options[kind]))
    docker.daemon("db", "mongo:/data", script="echo own > /data/own; sleep 600")
    docker("stop", "db")
    put(docker, data, tmp_path)
    docker("start", "db")

    done = docker.engine.client("docker", "exec", "db", "sh", "-euc", USE)
    assert done.returncode != 0, "it was not broken"
    status = docker.inspect("mongo")["Status"]
    told = "1 of the first 2 entries belong to others than 184:998"
    assert (status["ready"], status["drift"]) == (True, [])
    assert status["warnings"] == [f"{told}; if that is not meant: hostprep repair mongo"]
    said = hostprep.command("doctor", "mongo").stdout.splitlines()
    assert any(line.startswith("contents") and "BAD" in line for line in said), said
    assert [line.split("fix:")[1].strip() for line in said if "fix:" in line] == ["hostprep repair mongo"]

    plan = hostprep.command("repair", "--dry-run", "mongo")
    assert plan.stdout.splitlines()[0] == "mongo: would change 2 of 3 entries below it"
    assert owner(data / "conf") != (184, 998)
    done = hostprep.command("repair", "mongo")
    assert (done.returncode, done.stdout) == (0, "mongo: changed 2 of 3 entries below it\n"), done.stderr

    docker.exec("db", USE)
    assert {owner(path) for path in (data, data / "own", data / "conf", data / "conf/main")} == {(184, 998)}
    status = docker.inspect("mongo")["Status"]
    assert (status["ready"], status["drift"], status["warnings"]) == (True, [], [])
    assert "fix:" not in hostprep.command("doctor", "mongo").stdout
    docker("restart", "db")
    docker.exec("db", USE)


def test_files_of_several_users(docker: Docker, hostprep: Hostprep) -> None:
    """What a container's own users make is told, is no drift, and stays as it is at each start."""
    data = docker.create("cloud")
    docker.run("cloud:/data", "echo theirs > /data/theirs; chown 33:33 /data/theirs; echo own > /data/own", user="0:0")
    for _ in range(2):
        docker.run("cloud:/data", "true")
        status = docker.inspect("cloud")["Status"]
        assert (status["ready"], status["drift"]) == (True, [])
        (warning,) = status["warnings"]
        assert warning.startswith("2 of the first 2 entries belong to others than 184:998; if that is not meant: ")
    assert (owner(f"{data}/theirs"), owner(f"{data}/own")) == ((33, 33), (0, 0))


def test_while_containers_start(docker: Docker, hostprep: Hostprep) -> None:
    """Containers that start and stop meanwhile start, and the repair ends with everything right."""
    data = Path(docker.create("mongo"))
    docker.run("mongo:/data", "mkdir /data/many; i=0; while [ $i -lt 3000 ]; do : > /data/many/$i; i=$((i+1)); done")
    for name in os.listdir(data / "many"):
        os.chown(data / "many" / name, 0, 0)
    runs = [docker.begin("run", "--rm", "-u", "184:998", "-v", "mongo:/data", "busybox", "true") for _ in range(3)]
    done = hostprep.command("repair", "mongo")
    for process in runs:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    assert done.returncode == 0, done.stderr
    assert {owner(data / "many" / name) for name in os.listdir(data / "many")} == {(184, 998)}
    assert docker.inspect("mongo")["Status"]["ready"] is True
