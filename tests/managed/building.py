"""The managed plugin, built on a private engine. `python3 -m tests.managed.building` prints where an archive of it is.

Standard library only: tests/vm/run asks for the archive, too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from testbed.engine import TOP, Engine, Unavailable, environment

BASE = "debian:trixie-slim"
MADE_OF = ("Dockerfile", "config.json", "pyproject.toml", "managed", "plugin/hostprep")


class Builder(Engine):
    """An engine in the host's network, where a build finds Debian's mirror."""

    network = ()
    # runc takes a mount at /var/lib/hostprep for one above /var/lib/hostprep-…: it compares the beginnings of names.
    prefix = "engine-of-hostprep-"

    def start(self, *flags: str) -> None:
        super().start("--ip-forward=false", *flags)


def base() -> Path:
    """A tar of the image that the plugin is built on.

    Raises:
        Unavailable: this machine cannot make it.
    """
    argv = [TOP / "tests/managed/base"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode == 77:
        raise Unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def build(engine: Engine, *argv: str, flags: str = "", fails: bool = False, **variables: str) -> str:
    """Run a command that builds the plugin, as an administrator does; what it prints."""
    environ = environment({"DOCKER_HOST": engine.host, "DOCKER_CONFIG": f"{engine.home}/client", **variables})
    environ |= {"PLUGIN_BUILD": f"--network host {flags}", "SOURCE_DATE_EPOCH": changed()}
    done = subprocess.run(
        argv, cwd=TOP, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode != 0) == fails, f"{' '.join(argv)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stderr if fails else done.stdout


def changed() -> str:
    """When what the plugin is built from was last changed, in seconds since 1970, as far as git knows."""
    argv = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP), "log", "-1", "--format=%ct", "--", *MADE_OF]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout.strip() or "0"


def archive() -> Path:
    """Where the archive of a build of this checkout is, or would be."""
    cache = os.environ.get("HOSTPREP_TEST_CACHE") or os.path.expanduser("~/.cache/hostprep-tests")
    key = hashlib.sha256(changed().encode())
    files = (path for part in (*MADE_OF, "tests/managed/base") for path in (TOP / part, *(TOP / part).rglob("*")))
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        key.update(f"{path.relative_to(TOP)}\0".encode() + path.read_bytes())
    return Path(cache) / f"plugin-{key.hexdigest()[:16]}.tar"


def keep(directory: Path) -> Path:
    """Pack what managed/build made in *directory* (`docker plugin create` takes it), in the place of older ones."""
    made = archive()
    made.parent.mkdir(parents=True, exist_ok=True)
    for older in made.parent.glob("plugin-*.tar*"):
        older.unlink(missing_ok=True)
    subprocess.run(["tar", "-C", directory, "-cf", f"{made}.new", "rootfs", "config.json"], timeout=120, check=True)
    Path(f"{made}.new").rename(made)
    return made


def main() -> int:
    """Print the path of the archive, and make it where it is not there. 77: this machine cannot, and has said why."""
    if not (made := archive()).exists():
        try:
            with Builder() as engine, tempfile.TemporaryDirectory() as directory:
                done = engine.client("docker", "import", str(base()), BASE)
                assert done.returncode == 0, done.stderr
                build(engine, "managed/build", "rootfs", directory)
                keep(Path(directory))
        except Unavailable as exc:
            print(f"tests/managed/building.py: {exc}", file=sys.stderr)
            return 77
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
