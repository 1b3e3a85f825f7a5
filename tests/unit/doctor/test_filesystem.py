"""The commands for a volume's file system."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hostprep.doctor.filesystem import FileSystem
from hostprep.host.mountinfo import Mount


@pytest.mark.parametrize("name", ["mongo", "a b", "$(touch x)", "x; touch x", "'x'", "`touch x`"])
def test_on_an_nfs_server(tmp_path: Path, name: str) -> None:
    """A command for an NFS server names the same directory there, whatever a user has called it, and does no more."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')  # as sshd does
    ssh.chmod(0o755)
    mount = Mount(2, 1, "/srv", False, False, "0:50", "/export", "nfs4", "server:/export", ())

    command = FileSystem(-1, f"/srv/{name}", mount).on_its_server("printf", "%s")

    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", command], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"/export/{name}"
    assert [path.name for path in tmp_path.iterdir()] == ["ssh"]
