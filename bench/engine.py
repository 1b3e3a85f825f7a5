"""End to end through a real dockerd's API socket: hostprep beside Docker's own `local` driver, in turns."""

from __future__ import annotations

import json
import logging
import statistics
import time

from testbed import images
from testbed.engine import Engine, Hostprep

from .client import Client

_API = "/v1.41"
_PAIRS = 60
_CREATES = 200
DRIVERS = ("local", "hostprep")


def measure(pairs: int = _PAIRS, creates: int = _CREATES) -> dict[str, dict[str, list[float]]]:
    """Seconds by what was done and by driver: volumes/create, and create + start of a container with one volume."""
    found: dict[str, dict[str, list[float]]] = {}
    with Engine() as engine, Hostprep(engine, log_level="warning"):
        engine.client("docker", "import", "-", "bench", stdin=images.busybox()).check_returncode()
        with Client(engine.host.removeprefix("unix://")) as client:
            found["volumes/create"] = _volumes(client, creates)
            found["container create + start"] = _containers(client, pairs)
    return found


def _volumes(client: Client, count: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {driver: [] for driver in DRIVERS}
    for i in range(count):
        for driver in DRIVERS if i % 2 else reversed(DRIVERS):
            options = {"uid": "184", "gid": "998"} if driver == "hostprep" else {}
            body = {"Name": f"{driver}{i}", "Driver": driver, "DriverOpts": options}
            times[driver].append(client.request("POST", f"{_API}/volumes/create", body)[0])
    return times


def _containers(client: Client, pairs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {driver: [] for driver in DRIVERS}
    for i in range(pairs):
        for driver in DRIVERS if i % 2 else reversed(DRIVERS):
            body = {
                "Image": "bench",
                "Cmd": ["true"],
                "NetworkDisabled": True,
                "HostConfig": {"NetworkMode": "none", "Binds": [f"{driver}{i % 10}:/data"]},
            }
            begun = time.perf_counter()
            made = json.loads(client.request("POST", f"{_API}/containers/create", body)[1])["Id"]
            client.request("POST", f"{_API}/containers/{made}/start")
            times[driver].append(time.perf_counter() - begun)
            client.request("POST", f"{_API}/containers/{made}/wait")
            client.request("DELETE", f"{_API}/containers/{made}?force=1")
    return times


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| through dockerd, median | local | hostprep | ratio |", "|---|---:|---:|---:|"]
    for what, times in found.items():
        local, ours = (statistics.median(times[driver]) * 1e3 for driver in DRIVERS)
        lines.append(f"| {what} ({len(times['local'])} pairs) | {local:.2f} ms | {ours:.2f} ms | {ours / local:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable()
    print(table(measure()))
