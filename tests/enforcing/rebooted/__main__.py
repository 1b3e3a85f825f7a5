"""What is there when the power goes: restart=always containers, each on a volume, and with `promises` a new volume."""

from __future__ import annotations

import sys

from ..guest import Docker
from . import CONTAINERS, START


def main() -> None:
    """Start the containers; or create the volume whose answer is all there is to rely on."""
    docker = Docker()
    if sys.argv[1:] == ["promises"]:
        docker.create("promised", mode="0750")
        return
    for name in CONTAINERS:
        docker.create(name)
        flags = ("--restart=always", "--name", name, "-u", "184:998", "-v", f"{name}:/data")
        docker("run", "-d", *flags, "busybox", "sh", "-c", START)


main()
