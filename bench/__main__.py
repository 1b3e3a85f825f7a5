"""`make bench`: print every table but that of trees; `python -m bench verbs` and so on for one.

`make bench-tree` (`python -m bench disks tree 100000 1000000`) takes three quarters of an hour.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from . import engine, starts, tree, verbs


def machine() -> str:
    model = next(
        (ln.partition(": ")[2] for ln in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in ln), ""
    )
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f}"
    )


def main(chosen: list[str]) -> None:
    print(machine(), flush=True)
    if "verbs" in chosen:
        print("", verbs.table(verbs.measure()), sep="\n", flush=True)
    if "starts" in chosen:
        print("", starts.table(starts.first_answers(), starts.memory()), sep="\n", flush=True)
    if "engine" in chosen:
        print("", engine.table(engine.measure(), engine.files()), sep="\n", flush=True)
    if "tree" in chosen:
        for entries in [int(each) for each in chosen if each.isdigit()] or [100_000]:
            print()
            for line in tree.table(entries):
                print(line, flush=True)
    if "disks" in chosen:
        print()
        for line in tree.disks():
            print(line, flush=True)


main(sys.argv[1:] or ["verbs", "starts", "engine"])
