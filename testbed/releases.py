"""Engines and clients of Debian's releases: trees that testbed/release makes, for `testbed.engine.Engine`.

HOSTPREP_TEST_ENGINE names the release whose engine the tests in tests/engine run on; without it, this machine's.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from testbed.engine import PATH, TOP, Unavailable


class Versions(NamedTuple):
    """The versions of what a release has, as far as README.md's table names them."""

    docker: str
    compose: str
    podman: str


RELEASES = {
    "bookworm": Versions(docker="20.10", compose="1.29", podman="4.3"),
    "trixie": Versions(docker="26.1", compose="2.26", podman="5.4"),
    "forky": Versions(docker="28.5", compose="2.40", podman="5.8"),
}
RELEASE = os.environ.get("HOSTPREP_TEST_ENGINE") or None
if RELEASE and RELEASE not in RELEASES:
    raise ValueError(f"HOSTPREP_TEST_ENGINE={RELEASE} is none of {', '.join(RELEASES)}")


def tree() -> Path | None:
    """The root directory of the chosen release, built where it is not cached; None for this machine's own.

    Raises:
        Unavailable: this machine cannot build it; the text says why.
    """
    if not RELEASE:
        return None
    build = [str(TOP / "testbed/release"), RELEASE]
    done = subprocess.run(
        build, env=os.environ | {"PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable(done.stderr.strip())
    return Path(done.stdout.strip())
