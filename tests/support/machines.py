"""A machine of the test's own: its processes see each other and no others, and end with it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from tests.support.host import REPOSITORY

_SCRIPT = """
mount -t tmpfs none /run
mkdir /run/systemd
echo {kind} > /run/systemd/container
{prepare}
mkfifo /run/up /run/never
exec 9<>/run/never 8<>/run/up
{beside} <&9 >&8 8>&- &
read -r _ <&8
exec 8>&-
"$@"
"""


def on_a_machine(
    *command: str,
    beside: Sequence[str] = ("echo", "up"),
    kind: str = "lxc",
    prepare: str = "",
    environ: dict[str, str] | None = None,
) -> str:
    """What *command*, which must succeed, prints where no other process runs than *beside*.

    Args:
        beside: a command that prints a line when it is ready, and then waits or reads its input.
        kind: which container manager made the machine, as systemd names it.
        prepare: what a shell does first, in the machine's mount namespace.
    """
    script = _SCRIPT.format(kind=kind, prepare=prepare, beside=shlex.join(beside))
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-euc", script, "sh", *command],
        cwd=REPOSITORY,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
