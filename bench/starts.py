"""Starts and memory: the first answer, with how many volumes, and what the processes hold (PSS)."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

from .client import HOSTPREP, PLAIN, Client, scratch, served

_ROUNDS = 9


def first_answers(rounds: int = _ROUNDS) -> dict[str, float]:
    """Median milliseconds from exec to the first answer, in turns."""
    found: dict[str, list[float]] = {"plain Flask": [], "no volumes": [], "10,000 volumes": []}
    with scratch() as empty, scratch() as full, scratch() as plain:
        fill(full, 10_000)
        with served(HOSTPREP, empty):
            pass
        for _ in range(rounds):
            for name, command, directory in (
                ("plain Flask", PLAIN, plain),
                ("no volumes", HOSTPREP, empty),
                ("10,000 volumes", HOSTPREP, full),
            ):
                with served(command, directory) as (_, _, first):
                    found[name].append(first * 1e3)
                with contextlib.suppress(FileNotFoundError):
                    (directory / "bench.sock").unlink()
    return {name: statistics.median(times) for name, times in found.items()}


def fill(directory: Path, volumes: int) -> None:
    """Create volumes through the socket."""
    with served(HOSTPREP, directory) as (path, _, _), Client(path) as client:
        for i in range(volumes):
            client.call("VolumeDriver.Create", {"Name": f"v{i}", "Opts": {"uid": "184", "gid": "998"}})


def memory(volumes: int = 1_000) -> float:
    """MB (PSS) of all processes after every volume was listed, looked at and mounted once."""
    with scratch() as directory:
        fill(directory, volumes)
        with served(HOSTPREP, directory) as (path, pid, _), Client(path) as client:
            client.call("VolumeDriver.List", {})
            for i in range(volumes):
                for verb in ("Get", "Mount", "Unmount"):
                    client.call(f"VolumeDriver.{verb}", {"Name": f"v{i}", "ID": "x" * 64})
            return sum(pss(each) for each in [pid, *children(pid)]) / 1e3


def children(pid: int) -> list[int]:
    found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for each in found for below in children(each)]


def pss(pid: int) -> int:
    """Proportional set size in kB (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError("no Pss in smaps_rollup")


def table(answers: dict[str, float], megabytes: float) -> str:
    plain, none, many = answers["plain Flask"], answers["no volumes"], answers["10,000 volumes"]
    return "\n".join(
        [
            "| start of the server, and memory | | ratio |",
            "|---|---:|---:|",
            f"| first answer of a plain Flask application under gunicorn | {plain:.0f} ms | |",
            f"| first answer of hostprep, no volumes | {none:.0f} ms | {none / plain:.2f} of plain |",
            f"| first answer of hostprep, 10,000 volumes | {many:.0f} ms | {many / none:.2f} of none |",
            f"| memory of all processes, 1,000 volumes | {megabytes:.1f} MB | |",
        ]
    )
