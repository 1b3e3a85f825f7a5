"""Every verb over the socket, at 10, 1,000 and 10,000 volumes, beside gunicorn's stock worker in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .client import HOSTPREP, STOCK, Client, scratch, served

SIZES = (10, 1_000, 10_000)
_ROUNDS = 1000
_BLOCK = 20  # requests that follow one another without a pause, as an engine's do
_CREATES = 200


def p50_p99(seconds: list[float]) -> tuple[float, float]:
    """In microseconds."""
    ordered = sorted(seconds)
    return statistics.median(ordered) * 1e6, ordered[int(len(ordered) * 0.99)] * 1e6


def _time(client: Client, rounds: int, request: Callable[[int], tuple[str, dict[str, Any]]]) -> list[float]:
    return [client.call(*request(i))[0] for i in range(rounds)]


def _options(i: int) -> dict[str, str]:
    return {"uid": str(1000 + i % 50), "gid": "998", "mode": "0750"}


def measure(rounds: int = _ROUNDS, sizes: tuple[int, ...] = SIZES) -> dict[tuple[str, int], tuple[float, float]]:
    """p50 and p99 of each verb by number of volumes; those of the stock worker as `Get, stock` and so on."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    with scratch() as directory, served(HOSTPREP, directory) as (path, _, _), Client(path) as client:
        made = 0
        for size in sizes:
            while made < size:
                client.call("VolumeDriver.Create", {"Name": f"v{made}", "Opts": _options(made)})
                made += 1
            stock_dir = directory / f"stock{size}"
            stock_dir.mkdir()
            with (
                served(STOCK, stock_dir, HOSTPREP_ROOT=str(directory / "r")) as (other, _, _),
                Client(other) as stock,
            ):
                for verb in ("Get", "Mount", "Unmount", "Path"):
                    ours: list[float] = []
                    theirs: list[float] = []
                    for block in range(0, rounds, _BLOCK):  # in turns, so that the machine's mood hits both alike
                        for one, times in ((client, ours), (stock, theirs)):
                            for i in range(block, block + _BLOCK):
                                body = {"Name": f"v{i * 7919 % size}", "ID": "x" * 64}
                                times.append(one.call(f"VolumeDriver.{verb}", body)[0])
                    found[verb, size] = p50_p99(ours)
                    found[f"{verb}, stock gthread", size] = p50_p99(theirs)
            found["List", size] = p50_p99(_time(client, rounds, lambda _: ("VolumeDriver.List", {})))
            found["Capabilities", size] = p50_p99(_time(client, rounds, lambda _: ("VolumeDriver.Capabilities", {})))
    found |= _creates(sizes)
    return found


def _creates(sizes: tuple[int, ...]) -> dict[tuple[str, int], tuple[float, float]]:
    """Create and Remove, with a server for each size, interleaved."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    import contextlib

    with contextlib.ExitStack() as stack:
        clients = {}
        for size in sizes:
            directory = stack.enter_context(scratch())
            path, _, _ = stack.enter_context(served(HOSTPREP, directory))
            clients[size] = stack.enter_context(Client(path))
            for i in range(size):
                clients[size].call("VolumeDriver.Create", {"Name": f"v{i}", "Opts": _options(i)})
        creates: dict[int, list[float]] = {size: [] for size in sizes}
        removes: dict[int, list[float]] = {size: [] for size in sizes}
        for i in range(_CREATES):
            for size, client in clients.items():
                creates[size].append(client.call("VolumeDriver.Create", {"Name": f"n{i}", "Opts": _options(i)})[0])
            for size, client in clients.items():
                removes[size].append(client.call("VolumeDriver.Remove", {"Name": f"n{i}"})[0])
        for size in sizes:
            found["Create", size], found["Remove", size] = p50_p99(creates[size]), p50_p99(removes[size])
    return found


def table(found: dict[tuple[str, int], tuple[float, float]]) -> str:
    sizes = sorted({size for _, size in found})
    verbs = list(dict.fromkeys(verb for verb, _ in found))
    lines = ["| µs, p50 / p99 | " + " | ".join(f"{size:,} volumes" for size in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for verb in verbs:
        cells = [f"{found[verb, size][0]:.0f} / {found[verb, size][1]:.0f}" for size in sizes]
        lines.append(f"| {verb} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
