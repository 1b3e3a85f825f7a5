"""A user who is not root, with numbers for his containers, in a mount namespace where the machine knows him."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from testbed.engine import TOP

UID: Final = 61234
"""The user's number, and his group's."""
_UIDS, _GIDS, COUNT = 300000, 400000, 65536
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

# No file of the machine's is changed: an overlay has its /etc. The second of two ranges goes on where the first ends.
ACCOUNT: Final = f"""
etc=$(mktemp -d "$1/etc.XXXXXX")
mkdir "$etc/upper" "$etc/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$etc/upper,workdir=$etc/work" overlay /etc
echo "anna:x:{UID}:{UID}::$1/home:/bin/sh" >> /etc/passwd
echo "anna:x:{UID}:" >> /etc/group
printf '%s\n' "bob:200000:65536" "anna:{_UIDS}:1000" "anna:{_UIDS + 1000}:{COUNT - 1000}" > /etc/subuid
printf '%s\n' "anna:{_GIDS}:{COUNT}" > /etc/subgid
"""


def on_host(uid: int, gid: int) -> tuple[int, int]:
    """The host's numbers for a user and group of the user's containers."""
    return (_UIDS + uid - 1 if uid else UID), (_GIDS + gid - 1 if gid else UID)


class User:
    """The user, and what he has below *directory*, above which all is root's and others may pass."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home, self.run = directory / "home", directory / "run"
        self.root = self.home / ".local/share/hostprep"
        self.socket = self.run / "hostprep.sock"
        self.variables = {
            "HOME": str(self.home), "USER": "anna", "LOGNAME": "anna", "XDG_RUNTIME_DIR": str(self.run),
            "PATH": _PATH, "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        for path in (self.home, self.run, *map(self.home.joinpath, (".config", ".config/hostprep"))):
            path.mkdir(0o700)
        (self.home / ".config/hostprep/hostprep.env").touch()
        self.owns(self.home, self.run)

    def owns(self, *paths: Path) -> None:
        """Give everything in *paths* to the user."""
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.chown(each, UID, UID, follow_symlinks=False)

    def become(self, *argv: str, **variables: str) -> list[str]:
        """The command by which root runs *argv* as the user."""
        found = [f"{name}={value}" for name, value in {**self.variables, **variables}.items()]
        return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-i", *found, *argv]

    def hostprep(self, *args: str, before: Sequence[str] = (), prepare: str = "", **variables: str) -> list[str]:
        """The command by which root has the user run hostprep, by the command *before*.

        It has a mount namespace of its own, as engines have, in which root runs the shell script *prepare* first.
        Python and the checkout may be where only root may go.
        """
        top, site, python = (str(self.directory / name) for name in ("top", "site", "python"))
        binds = {str(TOP): top, sysconfig.get_path("purelib"): site, sys.base_prefix: python}
        program = f"{python}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        own = {"PYTHONPATH": f"{top}/plugin:{site}", "LD_LIBRARY_PATH": f"{python}/lib", **variables}
        become = self.become(*before, program, "-B", "-m", "hostprep", *args, **own)
        script = [ACCOUNT, *(f"mkdir -p {to} && mount --bind {shlex.quote(what)} {to}" for what, to in binds.items())]
        container = "mount -t tmpfs tmpfs /run; mkdir /run/systemd; echo systemd-nspawn > /run/systemd/container"
        script = ["set -eu", container, *script, prepare, "shift", 'exec "$@"']
        return ["unshare", "--mount", "--mount-proc", "sh", "-c", "\n".join(script), "sh", str(self.directory), *become]

    def runs(
        self, *args: str, before: Sequence[str] = (), prepare: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of hostprep's as the user."""
        return subprocess.run(
            self.hostprep(*args, before=before, prepare=prepare, **variables), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


def lacking() -> str:
    """What this machine lacks for such a user, "" for nothing."""
    return "" if shutil.which("newuidmap") else "newuidmap is missing: testbed/packages newuidmap=uidmap"
