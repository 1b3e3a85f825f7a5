"""make screens: the pictures of README.md and docs/, each of a real run on a private engine.

A picture shows what the command wrote to a terminal. Only the paths of the root and of the engine's socket are replaced
by those of an installed hostprep.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from testbed.engine import TOP, Engine, Hostprep, Unavailable, environment
from testbed.images import Entry, busybox

SCREENS = TOP / "docs" / "screens"
COLUMNS = 200  # so that the terminal wraps no line
# Like the official image of MongoDB: it starts as root, then switches to the owner of the data.
IMAGE = ("--change", "VOLUME /var/lib/mongodb", "--change", 'CMD ["mongod"]')
FILES = (Entry("var", 0o755), Entry("var/lib", 0o755), Entry("var/lib/mongodb", 0o755, 184, 998))
# Without rich's web fonts: a browser that shows the picture fetches nothing.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main(directory: Path = SCREENS) -> int:
    """Write all pictures into *directory*. Exit status 0, or 1 with the reason on stderr."""
    directory.mkdir(exist_ok=True)
    try:
        with Engine() as engine, Hostprep(engine, docker_host=engine.host) as hostprep:
            for name, title, shown in screens(engine, hostprep):
                (directory / f"{name}.svg").write_text(picture(name, title, shown))
    except Unavailable as exc:
        print(f"screens: {exc}", file=sys.stderr)
        return 1
    return 0


def screens(engine: Engine, hostprep: Hostprep) -> Iterator[tuple[str, str, str]]:
    """Name, title and text of each picture."""

    def docker(*argv: str, stdin: bytes = b"") -> None:
        engine.client("docker", *argv, stdin=stdin).check_returncode()

    docker("import", *IMAGE, "-", "mongodb", stdin=busybox(*FILES))
    yield "probe", "which numbers does an image need?", run(hostprep, "probe", "mongodb")

    docker("volume", "create", "-d", "hostprep", "-o", "uid=1000", "-o", "gid=1000", "mongo")
    program = ("mongodb", "sh", "-c", "exec sleep 600")
    docker("run", "-d", "--name", "db", "-u", "184:998", "-v", "mongo:/data", "--stop-signal", "KILL", *program)
    broken = run(hostprep, "doctor", "mongo", "--container", "db")
    fixed = run(hostprep, "doctor", "mongo", "--container", "db", "--fix", quietly=True)
    assert "not usable" in broken
    yield "doctor", "why can a container not use its volume?", broken
    yield "fix", "and what mends it", fixed

    docker("rm", "-f", "db")
    docker("volume", "create", "-d", "hostprep", "-o", "uid=999", "-o", "gid=999", "redis")
    os.chown(hostprep.root / "volumes/redis/_data", 0, 0)
    yield "installation", "is hostprep installed as it should be?", run(hostprep, "doctor")
    docker("volume", "rm", "mongo", "redis")


def run(hostprep: Hostprep, *arguments: str, quietly: bool = False) -> str:
    """A command, and what it prints on a terminal; without its log if *quietly*."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    argv = hostprep.engine.inside(sys.executable, "-m", "hostprep", *arguments)
    environ = {**hostprep.variables(), "TERM": "xterm-256color"}
    with os.fdopen(ours, "rb", buffering=0) as shown:
        with os.fdopen(theirs, "wb", buffering=0) as end:
            errors = subprocess.DEVNULL if quietly else end
            process = subprocess.Popen(
                argv, env=environment(environ), stdin=subprocess.DEVNULL, stdout=end, stderr=errors
            )
        printed = b""
        try:
            while more := shown.read(65536):
                printed += more
        except OSError:  # EIO: the other end is closed
            pass
    process.wait(60)
    text = printed.decode().replace("\r\n", "\n")
    text = text.replace(str(hostprep.root), "/var/lib/hostprep").replace(
        hostprep.engine.host, "unix:///run/docker.sock"
    )
    return f"# {shlex.join(['hostprep', *arguments])}\n{text}"


def picture(name: str, title: str, shown: str) -> str:
    """An SVG of a terminal. The same text always gives the same picture."""
    text = Text.from_ansi(shown.rstrip("\n"))
    # Leading blanks become a segment of their own, because some programs drop blanks at the beginning of a text.
    text.highlight_regex("(?m)^ +", "dim")
    width = max(len(line) for line in text.plain.splitlines()) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text, soft_wrap=True)
    return console.export_svg(title=title, code_format=FORMAT, unique_id=f"screen-{name}") + "\n"


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
