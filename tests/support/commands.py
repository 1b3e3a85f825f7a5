"""How a command ended, and what it shows on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess

from tests.support.host import PYTHON, REPOSITORY, Done


def fails(done: Done, *words: str) -> None:
    """Exit 1 and one line that says what is wrong, and nothing on stdout."""
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("hostprep: ")
    assert line.isprintable()
    for word in words:
        assert word in line


def succeeds(done: Done) -> str:
    assert done.code == 0, done.err
    return done.out


def on_a_terminal(code: str, **variables: str) -> str:
    """Run *code* with stdout and stderr on a terminal, and answer what it shows there."""
    ours, theirs = pty.openpty()
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "120", **variables}
    subprocess.run(
        [PYTHON, "-c", code], cwd=REPOSITORY, env=environ, stdout=theirs, stderr=theirs, check=True, timeout=60
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end
        while got := os.read(ours, 65536):
            shown += got
    os.close(ours)
    return shown.decode()
