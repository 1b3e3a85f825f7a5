"""An image with the distribution's own redis-server: its package makes the user and the directories."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from testbed.engine import PATH, Unavailable, environment

RECIPE = (
    "mmdebstrap", "--mode=root", "--variant=minbase", "--include=redis-server", "--quiet",
    "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)  # fmt: skip
# Where this machine has its distribution's packages from; no third party's.
SOURCES = ("sources.list", "sources.list.d/*debian.*", "sources.list.d/*ubuntu.*")


def image() -> Path:
    """The image as a tar, from the cache where it holds one of the same recipe and versions."""
    if not shutil.which("mmdebstrap", path=PATH):
        raise Unavailable("mmdebstrap is not installed")
    found = (path for pattern in SOURCES for path in Path("/etc/apt").glob(pattern))
    sources = [str(path) for path in found if path.stat().st_size]
    known = subprocess.run(
        ["apt-cache", "policy", "redis-server", "base-files", "libc6"],
        env=environment(), capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    key = hashlib.sha256(repr((RECIPE, sources)).encode() + known.stdout).hexdigest()[:16]
    cache = Path(os.environ.get("HOSTPREP_TEST_CACHE") or Path.home() / ".cache" / "hostprep-tests")
    cache.mkdir(parents=True, exist_ok=True)
    tar = cache / f"redis-{key}.tar"
    if not tar.exists():
        for old in cache.glob("redis-*"):
            old.unlink()
        partial = cache / f"redis-{key}.partial.tar"
        argv = [*RECIPE, "", str(partial), *sources]
        subprocess.run(argv, env=environment(), stdin=subprocess.DEVNULL, timeout=400, check=True)
        partial.rename(tar)
    return tar
