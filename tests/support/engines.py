"""What hostprep sees of an engine that asks: a process called dockerd, with a command line, and its own /etc."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.host import PYTHON, REPOSITORY
from tests.support.unixhttp import Answer, Connection

_PR_SET_NAME = 15
# A copy of all of it: where another process replaces a file by rename, the kernel takes away what is mounted on it.
_OWN_ETC = """
all=$(mktemp -d "$1/all.XXXXXX") && cp -a /etc/. "$all" && cp "$1"/sub?id "$1/passwd" "$all" || exit
chmod 755 "$all" && mount --bind "$all" /etc && shift && exec "$@"
"""


class Asking:
    """A process that asks a server, called as an engine is."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def _said(self, line: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __call__(self, socket: Path, verb: str, **body: Any) -> Answer:
        return Answer(*self._said(json.dumps([str(socket), verb, body])))

    @property
    def pid(self) -> int:
        return int(self._said("null"))

    def beside(self, *argv: str) -> str:
        """What a command prints that runs where this process does."""
        command = ["nsenter", "--target", str(self.pid), "--mount", f"--wd={REPOSITORY}", "--", *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return (done.stdout + done.stderr).strip()


@contextlib.contextmanager
def asking(*words: str, etc: Path, name: str = "dockerd", under: Sequence[str] = ()) -> Iterator[Asking]:
    """A process called *name*, with *words* in its command line. Where it is, files of *etc* are in /etc."""
    inside = ["unshare", "--mount", "sh", "-c", _OWN_ETC, "sh", str(etc)]
    command = [*inside, *under, PYTHON, "-m", "tests.support.engines", name, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Asking(process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(60)


def etc(directory: Path, ranges: Mapping[str, str]) -> Path:
    """A directory for `asking`: a file for each of *ranges*, and accounts lab and dockremap."""
    directory.mkdir()
    accounts = "root:x:0:0::/:/bin/sh\nlab:x:1500:1500::/:/bin/sh\ndockremap:x:1600:1600::/:/bin/sh\n"
    for name, text in {"passwd": accounts, **ranges}.items():
        (directory / name).write_text(text)
    return directory


def main() -> None:
    """Answer, for each line of the standard input, what the server says; this process's number for `null`."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, sys.argv[1].encode(), 0, 0, 0)
    for line in sys.stdin:
        said = json.loads(line)
        found: Any = os.getpid()
        if said is not None:
            with contextlib.closing(Connection(Path(said[0]))) as connection:
                answer = connection.ask(f"/VolumeDriver.{said[1]}", json.dumps(said[2]).encode())
            found = [answer.status, answer.body]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
