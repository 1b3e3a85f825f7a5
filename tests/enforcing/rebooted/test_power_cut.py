"""The guest has lost its power and started again, the engine with three containers on volumes of hostprep's."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from ..guest import ROOT, Docker, Hostprep, checked, command, label, owner
from . import CONTAINERS

docker = Docker()


def came_up(unit: str) -> int:
    """When the unit was up, in microseconds since boot."""
    return int(checked("systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "--value", unit))


def test_containers() -> None:
    """Each restart=always container is up again, on its volume, with what it wrote before."""
    for name in CONTAINERS:
        starts = ROOT / "volumes" / name / "_data/starts"
        assert starts.read_text() == "started\nstarted\n"
        assert docker("inspect", "-f", "{{.State.Running}}", name) == "true"
        assert owner(starts) == "184:998"


def test_no_stall() -> None:
    """The engine found its driver at the first attempt: one in vain, and it tries for 15 seconds for each volume."""
    log = checked("journalctl", "--boot", "--unit=docker.service")
    assert "Loading containers: done" in log
    assert not re.search("Unable to .* plugin", log)
    assert came_up(Hostprep.UNIT) < came_up("docker.service")


def test_promised() -> None:
    """A volume whose Create was answered just before the power went is there, ready."""
    directory = ROOT / "volumes/promised/_data"

    assert owner(directory) == "184:998"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert ":container_file_t:" in label(directory)
    assert docker.run("promised:/data", "echo written > /data/file; cat /data/file") == "written"


def test_uninstall() -> None:
    """The last test: `make uninstall` removes all but settings and data."""
    checked("make", "--silent", "uninstall")

    assert command("systemctl", "cat", "hostprep.socket", Hostprep.UNIT).returncode != 0
    assert not Path("/run/docker/plugins/hostprep.sock").exists()
    assert not Path("/usr/local/bin/hostprep").is_symlink()
    assert not Hostprep.LIB.exists()
    assert "hostprep" not in checked("semanage", "fcontext", "--list", "--locallist")
    assert Hostprep.SETTINGS.exists()
    assert (ROOT / "volumes/one/_data/starts").exists()
