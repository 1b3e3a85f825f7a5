"""End to end through a real dockerd's API socket: hostprep beside Docker's own `local` driver, in turns."""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator

from hostprep.host.idmap import Exchange, IdMap
from hostprep.volumes import pins
from testbed import images
from testbed.engine import Engine, Hostprep

from .client import Client

_API = "/v1.41"
_PAIRS = 60
_CREATES = 200
_ROUNDS = 9
_FILES = 5_000
OPTIONS = {
    "local": {},
    "hostprep": {"uid": "184", "gid": "998"},
    "host_uid": {"uid": "184", "gid": "998", "host_uid": "1000", "host_gid": "1000"},
}
"""What is measured beside each other. "host_uid" is hostprep, too."""


def measure(pairs: int = _PAIRS, creates: int = _CREATES) -> dict[str, dict[str, list[float]]]:
    """Seconds by what was done and by driver: volumes/create, and create + start of a container with one volume."""
    found: dict[str, dict[str, list[float]]] = {}
    with Engine() as engine, Hostprep(engine, log_level="warning") as hostprep:
        hostprep.stop()
        hostprep.start(drop_ins=["user-ids.conf"])
        engine.client("docker", "import", "-", "bench", stdin=images.busybox()).check_returncode()
        with Client(engine.host.removeprefix("unix://")) as client:
            found["volumes/create"] = _volumes(client, creates)
            found["container create + start"] = _containers(client, pairs)
    return found


def _volumes(client: Client, count: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {which: [] for which in OPTIONS}
    for i in range(count):
        for which in _in_turn(i):
            driver = "local" if which == "local" else "hostprep"
            body = {"Name": f"{which}{i}", "Driver": driver, "DriverOpts": OPTIONS[which]}
            times[which].append(client.request("POST", f"{_API}/volumes/create", body)[0])
    return times


def _containers(client: Client, pairs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {which: [] for which in OPTIONS}
    for i in range(pairs):
        for which in _in_turn(i):
            body = {
                "Image": "bench",
                "Cmd": ["true"],
                "NetworkDisabled": True,
                "HostConfig": {"NetworkMode": "none", "Binds": [f"{which}{i % 10}:/data"]},
            }
            begun = time.perf_counter()
            made = json.loads(client.request("POST", f"{_API}/containers/create", body)[1])["Id"]
            client.request("POST", f"{_API}/containers/{made}/start")
            times[which].append(time.perf_counter() - begun)
            client.request("POST", f"{_API}/containers/{made}/wait")
            client.request("DELETE", f"{_API}/containers/{made}?force=1")
    return times


def _in_turn(number: int) -> list[str]:
    """Another order each time."""
    names = list(OPTIONS)
    return names[number % len(names) :] + names[: number % len(names)]


def files(rounds: int = _ROUNDS, count: int = _FILES) -> dict[str, tuple[float, float]]:
    """Seconds for what is done to *count* files, directly and through an idmapped mount, medians, in turns."""
    idmap = IdMap(Exchange(1000, 184), Exchange(1000, 998))
    times: dict[str, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory(dir="/var/lib") as directory:
        data = os.open(directory, os.O_RDONLY)
        with pins.clone(data, idmap) as tree:
            for number in range(rounds):
                for which in (number % 2, 1 - number % 2):
                    for what, seconds in _operations((data, tree)[which], count):
                        times.setdefault(what, ([], []))[which].append(seconds)
        os.close(data)
    return {what: (statistics.median(direct), statistics.median(through)) for what, (direct, through) in times.items()}


def _operations(directory: int, count: int) -> Iterator[tuple[str, float]]:
    names = [f"f{number}" for number in range(count)]

    def create(name: str) -> None:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=directory))

    for what, operation in (
        ("create", create),
        ("stat", lambda name: os.stat(name, dir_fd=directory)),
        ("chown", lambda name: os.chown(name, 184, 998, dir_fd=directory)),
        ("unlink", lambda name: os.unlink(name, dir_fd=directory)),
    ):
        begun = time.perf_counter()
        for name in names:
            operation(name)
        yield what, time.perf_counter() - begun


def table(found: dict[str, dict[str, list[float]]], done: dict[str, tuple[float, float]]) -> str:
    lines = ["| through dockerd, median | local | hostprep | ratio | with host_uid | ratio |", "|---|" + "---:|" * 5]
    for what, times in found.items():
        local, ours, mapped = (statistics.median(times[which]) * 1e3 for which in OPTIONS)
        cells = f"{local:.2f} ms | {ours:.2f} ms | {ours / local:.2f} | {mapped:.2f} ms | {mapped / local:.2f}"
        lines.append(f"| {what} ({len(times['local'])} of each) | {cells} |")
    lines += ["", f"| {_FILES:,} files, median | directly | with host_uid | ratio |", "|---|---:|---:|---:|"]
    for what, (direct, through) in done.items():
        lines.append(f"| {what} | {direct * 1e3:.0f} ms | {through * 1e3:.0f} ms | {through / direct:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable()
    print(table(measure(), files()))
