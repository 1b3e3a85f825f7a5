"""The service as it is installed: its sandbox, and that no engine notices a crash or an upgrade of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .guest import ROOT, SOCKET, TOP, Docker, Hostprep, checked, command, eventually, label, owner

CAPABILITIES = {
    "chown": 0,
    "dac_override": 1,
    "fowner": 3,
    "fsetid": 4,
    "linux_immutable": 9,
    "sys_admin": 21,
    "sys_ptrace": 19,
}  # capability.h


def test_units(hostprep: Hostprep) -> None:
    """systemd has nothing to object to in the units, and at boot starts them by itself."""
    done = command("systemd-analyze", "verify", "hostprep.socket", hostprep.UNIT)

    assert (done.returncode, [line for line in done.stderr.splitlines() if "hostprep" in line]) == (0, [])
    assert checked("systemctl", "is-enabled", "hostprep.socket", hostprep.UNIT) == "enabled\nenabled"


def test_socket(hostprep: Hostprep) -> None:
    """The socket is systemd's, and root's alone."""
    found = os.stat(SOCKET)

    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0)
    assert "at the socket that systemd passed" in hostprep.log()


def test_sandbox(hostprep: Hostprep) -> None:
    """The server shares the host's mounts, has the named capabilities and no others, and a filter of system calls."""
    status = dict(line.split(":\t", 1) for line in (hostprep.process() / "status").read_text().splitlines())

    assert os.readlink(hostprep.process() / "ns/mnt") == os.readlink("/proc/1/ns/mnt")
    expected = sum(1 << number for number in CAPABILITIES.values())
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == expected
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_security(hostprep: Hostprep) -> None:
    """systemd rates the running service as docs/install.md says."""
    page = " ".join((TOP / "docs/install.md").read_text().split())  # wherever a line ends
    version = checked("systemd-analyze", "--version").split()[1]

    said = checked("systemd-analyze", "security", "--no-pager", hostprep.UNIT)

    score = re.search(r"Overall exposure level for hostprep.service: (\d+\.\d) OK", said)
    assert score, said[-200:]
    assert f"**{score[1]} (OK)** in systemd {version}" in page


def test_remembers(hostprep: Hostprep) -> None:
    """The sandbox and the policy let it remember its root, for root alone."""
    known = Path("/etc/hostprep/roots/var%2Flib%2Fhostprep")

    assert json.loads(known.read_text())["id"] == json.loads((ROOT / "hostprep.json").read_text())["id"]
    assert (stat.S_IMODE(known.stat().st_mode), stat.S_IMODE(known.parent.stat().st_mode)) == (0o600, 0o700)
    assert "is not remembered" not in hostprep.log()


def test_setgid(docker: Docker) -> None:
    """What the sandbox must not take away: setgid for a group that is not root's."""
    directory = docker.create("mongo", mode="02770")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o2770


def test_mount(docker: Docker) -> None:
    """A mount that the service makes, for a directory in a home, is what the container gets."""
    directory = Path("/home/user/database")
    directory.mkdir()
    os.chown(directory, 1000, 1000)

    mountpoint = docker.create("mongo", path=str(directory), label="container_file_t")

    assert mountpoint == ROOT / "mounts/mongo"
    assert docker.run("mongo:/data", "echo written > /data/file; cat /data/file") == "written"
    assert (directory / "file").read_text() == "written\n"
    docker("volume", "rm", "mongo")
    assert not mountpoint.exists()
    assert (directory / "file").exists()


def test_command(hostprep: Hostprep) -> None:
    """The command line has the settings of the service."""
    assert hostprep.command("create", "mongo", "-o", "path=/srv/mongo").returncode == 0
    done = hostprep.command("create", "other", "-o", "path=/srv/other", HOSTPREP_ALLOW="/home/user")

    assert hostprep.command("rm", "mongo").returncode == 0
    assert (done.returncode, "HOSTPREP_ALLOW" in done.stderr) == (1, True)


def test_killed(docker: Docker, hostprep: Hostprep) -> None:
    """Killed again and again, the server is back for whoever comes next: each container starts, and has its data.

    Who starts one before it is back waits. What a server that is killed was just asked is another matter: see
    docs/reliability.md.
    """
    docker.create("mongo")
    before = int(hostprep.show("NRestarts"))
    for _ in range(3):
        checked("systemctl", "kill", "--kill-whom=main", "--signal=KILL", hostprep.UNIT)
        with ThreadPoolExecutor() as threads:
            runs = [threads.submit(docker.run, "mongo:/data", f"echo {n} > /data/{n}; cat /data/{n}") for n in range(2)]
            assert [run.result() for run in runs] == ["0", "1"]
        assert docker.run("mongo:/data", "cat /data/*") == "0\n1"
    assert int(hostprep.show("NRestarts")) - before == 3


def test_upgrade(docker: Docker, hostprep: Hostprep) -> None:
    """While it is installed anew a container goes on, and whoever asks is answered, as an engine if need be twice.

    gunicorn before 24 drops a connection that it has accepted, and not read from, when SIGTERM comes.
    """
    docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    old, settings, process = os.readlink(hostprep.LIB / "current"), hostprep.SETTINGS.read_text(), hostprep.process()
    done = threading.Event()

    def ask() -> tuple[int, int]:
        answered = dropped = 0
        while not done.wait(0.05):
            try:
                hostprep.mount("mongo")
                answered += 1
            except (ConnectionResetError, BrokenPipeError):  # before it had read, or before this had sent
                dropped += 1
        return answered, dropped

    with ThreadPoolExecutor() as threads:
        asked = threads.submit(ask)
        try:
            hostprep.install()
        finally:
            done.set()

    answered, dropped = asked.result()
    assert answered > 20
    assert dropped <= 1
    assert hostprep.process() != process
    assert {path.name for path in hostprep.LIB.iterdir()} == {"current", old, os.readlink(hostprep.LIB / "current")}
    assert hostprep.SETTINGS.read_text() == settings
    assert docker.exec("db", "echo written > /data/file; cat /data/file") == "written"
    assert docker.run("mongo:/data", "cat /data/file") == "written"


def test_purge_of_what_is_in_use(docker: Docker, hostprep: Hostprep) -> None:
    """In the sandbox, what containers of root's and of others have mounted is not purged, and what nobody has is."""
    names = ("mongo", "redis", "other")
    for name in names:
        docker.create(name, **({"uid": "0", "gid": "0"} if name == "redis" else {}))
    docker.daemon("db", "mongo:/data")
    docker("run", "-d", "--name=root", "--stop-signal=KILL", "-v", "redis:/data", "busybox", "sleep", "600")
    hostprep.set(HOSTPREP_TRASH_KEEP="0")
    try:
        checked("systemctl", "restart", hostprep.UNIT)
        for name in names:
            hostprep("Remove", name)
        eventually(lambda: "purged other" in hostprep.log(), "what nobody uses is gone")
        eventually(lambda: hostprep.log().count(" is not purged: process ") > 1, "it is said of both")
        for container in ("db", "root"):
            assert docker.exec(container, "echo written > /data/file; cat /data/file") == "written"
        docker("rm", "-f", "db", "root")
        docker.create("more")
        docker("volume", "rm", "more")
        eventually(lambda: "purged mongo" in hostprep.log() and "purged redis" in hostprep.log(), "they are gone, too")
    finally:
        hostprep.set()
        checked("systemctl", "restart", hostprep.UNIT)


def test_host_ids(docker: Docker, hostprep: Hostprep) -> None:
    """The unit refuses host_uid in words; with the drop-in that is installed, the files are another's on disk."""
    said = docker.fails("volume", "create", "-d=hostprep", "-o=uid=184", "-o=gid=998", "-o=host_uid=1000", "mongo")
    assert "the drop-in user-ids.conf for hostprep.service allows it" in said
    drop_in = Path(f"/etc/systemd/system/{hostprep.UNIT}.d/user-ids.conf")
    shutil.copy(hostprep.LIB / "current" / drop_in.name, drop_in)
    try:
        checked("systemctl", "daemon-reload")
        checked("systemctl", "restart", hostprep.UNIT)
        place = docker.create("mongo", host_uid="1000", host_gid="1001")
        assert docker.run("mongo:/data", "echo written > /data/file; stat -c %u:%g /data/file") == "184:998"
        assert owner(place / "file") == "184:998"
        on_disk = ROOT / "volumes/mongo/_data/file"
        assert (owner(on_disk), label(on_disk)) == ("1000:1001", label(place / "file"))
        docker("volume", "rm", "mongo")
    finally:
        drop_in.unlink()
        checked("systemctl", "daemon-reload")
        checked("systemctl", "restart", hostprep.UNIT)


def test_wrong_setting(docker: Docker, hostprep: Hostprep) -> None:
    """A wrong setting is said, and the engine gets an error after a while instead of waiting for ever."""
    docker.create("mongo")
    limit = Path(f"/etc/systemd/system/{hostprep.UNIT}.d/limit.conf")
    limit.write_text("[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=3\n")  # however long a start takes here
    units = ("hostprep.socket", hostprep.UNIT)
    checked("systemctl", "daemon-reload")
    checked("systemctl", "reset-failed", *units)
    hostprep.set(HOSTPREP_PATIENCE="soon")
    try:
        assert command("systemctl", "restart", hostprep.UNIT).returncode != 0
        docker.fails("volume", "inspect", "mongo")
        assert 'HOSTPREP_PATIENCE="soon" is not 0 or a number' in hostprep.log()
        eventually(lambda: not Path(SOCKET).exists(), "systemd gives up, and the socket goes")
    finally:
        hostprep.set()
        limit.unlink()
        checked("systemctl", "daemon-reload")
        checked("systemctl", "reset-failed", *units)
        checked("systemctl", "restart", hostprep.UNIT)

    eventually(lambda: docker("volume", "inspect", "-f", "{{.Name}}", "mongo") == "mongo", "the volume is back")
