"""Volumes made, used and removed by several clients of an engine at once, the plugin killed now and then.

What a user is told (a container that does not start because the plugin was just killed) is counted, and tried again as
he would. What he is not told must not happen: a volume or data lost, a local volume of that name in its place.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed.engine import Engine, Hostprep, wait_for

from .client import OPTIONS, Docker

CLIENTS = 4
AGAIN = 8  # times that a user tries again
KILLING = 0.6  # of the time; then one server lives to the end, so that what it leaks is seen
_ANY_NAME = re.compile(r"\b[cs]?s[0-9]x[0-9]+\b|\bkept[0-9]\b|[0-9a-f]{12,}")
KINDS = ("own", "own", "path", "home", "retain", "run")


@dataclass
class Figures:
    """What happened."""

    seconds: float = 0.0
    cycles: int = 0
    commands: int = 0
    containers: int = 0
    killed: int = 0
    restarted: int = 0
    told: int = 0
    """Commands that failed, with a reason, and succeeded when they were tried again."""
    reasons: set[str] = field(default_factory=set)
    lost: int = 0
    shadowed: int = 0
    descriptors: tuple[int, int] = (0, 0)
    """Of the last server, without connections, at its beginning and at the end."""
    threads: tuple[int, int] = (0, 0)
    megabytes: tuple[float, float] = (0.0, 0.0)
    create: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        for key, value in asdict(self).items():
            if isinstance(value, set):
                yield from (f"{'':<12} {each}" for each in sorted(value))
            elif not isinstance(value, list):
                yield f"{key:<12} {value}"
            elif len(value) > 1:
                p50, p99 = statistics.median(value), statistics.quantiles(value, n=100)[98]
                yield f"{key:<12} p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(value):.2f} s"


class Soak:
    """One run. *allowed* is where `path` may lie, *home* a directory below it that is a user's own."""

    def __init__(self, engine: Engine, hostprep: Hostprep, docker: Docker, allowed: Path, seed: int) -> None:
        self.engine = engine
        self.hostprep = hostprep
        self.docker = docker
        self.allowed = allowed
        self.home = allowed / "home"
        self.figures = Figures()
        self.wrong: list[str] = []
        self._seed = seed
        self._guard = threading.Lock()
        self._end = 0.0
        self._over = threading.Event()

    def run(self, seconds: float) -> Figures:
        """Go on for *seconds*, and see what there is then; what went wrong is in *wrong*."""
        begun = time.monotonic()
        self._end = begun + seconds
        self.home.mkdir()
        os.chown(self.home, 1000, 1000)
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            self._kill_now_and_then(begun + seconds * KILLING, pause=min(6.0, seconds / 15))
            self._watch()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        self.figures.seconds = round(time.monotonic() - begun, 1)
        self._look_at_the_end()
        self.home.rmdir()
        return self.figures

    # -- what users do -----------------------------------------------------------------------------------------------

    def _client(self, number: int) -> None:
        dice = random.Random(self._seed + number)  # noqa: S311  # the same at each run
        kept = f"kept{number}"
        try:
            self._again(lambda: self.docker.create(kept))
            cycle = 0
            while cycle == 0 or (not self._over.is_set() and time.monotonic() < self._end):
                self._cycle(f"s{number}x{cycle}", dice.choice(KINDS))
                self._again(lambda: self._log(kept, cycle))  # noqa: B023  # it is over before cycle changes
                cycle += 1
                with self._guard:
                    self.figures.cycles += 1
            logged = self._again(lambda: self._run(kept, "cat /data/log")).split("\n")
            self._must(logged == [f"cycle {n}" for n in range(cycle)], f"{kept} has {logged}")
            self._again(lambda: self._remove(kept))
        except BaseException as exc:
            self.wrong.append(f"client {number}: {exc!r}")
            self._over.set()

    def _cycle(self, name: str, kind: str) -> None:
        """A volume's whole life."""
        flags: tuple[str, ...] = OPTIONS
        place = {"path": self.allowed, "home": self.home}.get(kind)
        if place is not None:
            flags = (*OPTIONS, "-o", f"path={place / name}")
        if kind == "retain":
            flags = (*OPTIONS, "-o", "on_remove=retain")
        if kind != "run":  # or docker run makes it, without options
            begun = time.monotonic()
            self._again(lambda: self.docker.create(name, *flags))
            self.figures.create.append(time.monotonic() - begun)
        as_root = ("--volume-driver", "hostprep") if kind == "run" else ()
        user = "0:0" if kind == "run" else "184:998"
        begun = time.monotonic()
        self._again(lambda: self._run(name, "echo one > /data/one", *as_root, user=user))
        self.figures.start.append(time.monotonic() - begun)
        self._must(self._driver(name) == "hostprep", f"{name} is hostprep's")
        self._again(lambda: self._daemon(name, user))
        self._again(lambda: self.docker.exec(f"c{name}", "echo two > /data/two"))
        self._again(lambda: self.docker("restart", "-t", "0", f"c{name}"))
        seen = self._again(lambda: self.docker.exec(f"c{name}", "cat /data/one /data/two"))
        self._must(seen == "one\ntwo", f"{name}, after a restart, has {seen!r}")
        self._again(lambda: self._gone(f"c{name}"))
        seen = self._again(lambda: self._run(name, "cat /data/one /data/two", user=user))
        self._must(seen == "one\ntwo", f"{name}, in another container, has {seen!r}")
        self._again(lambda: self._remove(name))
        if place is not None:
            self._must((place / name / "two").read_text() == "two\n", f"{place / name} is there")
            for each in ("one", "two"):
                (place / name / each).unlink()
            (place / name).rmdir()
        if kind == "retain":
            self._must((self.hostprep.root / "volumes" / name / "_data" / "two").exists(), f"{name} is retained")
            done = self.hostprep.command("rm", "--retained", name)
            self._must(done.returncode == 0, done.stderr)

    def _log(self, volume: str, cycle: int) -> None:
        """Append a line; once, should it be tried again."""
        self._run(volume, f"grep -qsx 'cycle {cycle}' /data/log || echo 'cycle {cycle}' >> /data/log")

    def _run(self, volume: str, script: str, *flags: str, user: str = "184:998") -> str:
        with self._guard:
            self.figures.containers += 1
        return self.docker.run(f"{volume}:/data", script, *flags, user=user)

    def _daemon(self, name: str, user: str) -> None:
        self._gone(f"c{name}")
        flags = ("--name", f"c{name}", "-u", user, "-v", f"{name}:/data", "--stop-signal", "KILL")
        with self._guard:
            self.figures.containers += 1
        self.docker("run", "-d", *flags, "busybox", "sleep", "600")

    def _gone(self, container: str) -> None:
        done = self.engine.client("docker", "rm", "-f", container)
        assert done.returncode == 0 or "No such container" in done.stderr, done.stderr

    def _remove(self, name: str) -> None:
        done = self.engine.client("docker", "volume", "rm", name)
        assert done.returncode == 0 or "no such volume" in done.stderr.lower(), done.stderr

    def _driver(self, name: str) -> str:
        return self._again(lambda: self.docker("volume", "inspect", "-f", "{{.Driver}}", name))

    def _again(self, command: Callable[[], str | None]) -> str:
        """Have a command succeed, trying again as a user does who was told to."""
        for attempt in range(AGAIN):
            with self._guard:
                self.figures.commands += 1
            try:
                return command() or ""
            except AssertionError as exc:
                if attempt == AGAIN - 1:
                    raise
                with self._guard:
                    self.figures.told += 1
                self._expected(str(exc))
                self.figures.reasons.add(_ANY_NAME.sub("…", str(exc).strip().rpartition("daemon: ")[2])[:160])
                time.sleep(0.3)
        raise AssertionError

    def _expected(self, told: str) -> None:
        """A command may fail because the plugin was not there, or had just been killed; for no other reason."""
        words = (
            "connection refused", "no such file or directory", "EOF", "connection reset", "broken pipe",
            "without its contents", "is not running", "error while mounting volume", "unable to find",
        )  # fmt: skip
        self._must(any(word.lower() in told.lower() for word in words), f"told: {told}")

    def _must(self, true: bool, what: str) -> None:  # noqa: FBT001
        if not true:
            with self._guard:
                self.figures.lost += 1
            raise RuntimeError(what)

    # -- what happens to them ----------------------------------------------------------------------------------------

    def _kill_now_and_then(self, until: float, *, pause: float) -> None:
        dice = random.Random(self._seed)  # noqa: S311  # as above
        while (time.monotonic() < until or self._ended() < 2) and not self.wrong:
            self._over.wait(dice.uniform(0.5, pause))
            if dice.random() < 0.75:
                self.hostprep.kill()
                self.figures.killed += 1
            else:
                self._check(self.hostprep.stop() == 0, "the server ends in good order")
                self.figures.restarted += 1
            time.sleep(dice.choice((0, 0, 0.2, 1.0)))
            self.hostprep.start()
            self._look_for_shadows()

    def _ended(self) -> int:
        return self.figures.killed + self.figures.restarted

    def _watch(self) -> None:
        """One server lives to the end: what it has at its beginning, when it is warm, and at the end."""
        pid = self.hostprep.process.pid
        self._over.wait(max(1.0, min(15.0, (self._end - time.monotonic()) / 2)))
        begun = opened(pid), threads(pid), megabytes(pid)
        while time.monotonic() < self._end and not self._over.wait(5):
            self._look_for_shadows()
        # Those who come to their end now still use it: what is looked at is what it has beside connections.
        self._over.set()
        ended = opened(pid), threads(pid), megabytes(pid)
        self.figures.descriptors, self.figures.threads = (begun[0], ended[0]), (begun[1], ended[1])
        self.figures.megabytes = begun[2], ended[2]

    def _look_for_shadows(self) -> None:
        listed = self.engine.client("docker", "volume", "ls", "--format", "{{.Driver}} {{.Name}}").stdout.splitlines()
        found = [line for line in listed if not line.startswith("hostprep ")]
        self.figures.shadowed += len(found)
        self._check(not found, f"local volumes: {found}")

    def _check(self, true: bool, what: str) -> None:  # noqa: FBT001
        if not true:
            self.wrong.append(what)

    def _look_at_the_end(self) -> None:
        """With everybody gone there is nothing that is not to be there."""
        pid, root = self.hostprep.process.pid, self.hostprep.root
        before = self.figures.descriptors[0]
        self.hostprep.command("purge", "--all")
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: opened(pid) <= before, "descriptors to be closed")
        self.figures.descriptors = (before, opened(pid))
        self.figures.threads = (self.figures.threads[0], threads(pid))
        self._check(opened(pid) <= before, f"descriptors: {self.figures.descriptors}")
        self._check(threads(pid) < 75, f"threads: {self.figures.threads}")
        grown = self.figures.megabytes[1] - self.figures.megabytes[0]
        self._check(grown < 8, f"megabytes: {self.figures.megabytes}")
        self._check(self.docker.volumes() == [], "no volume is left")
        self._check(self.docker.containers() == [], "no container is left")
        for part, left in (("volumes", []), ("trash", []), ("mounts", []), ("locks", ["held"])):
            self._check(sorted(os.listdir(root / part)) == left, f"{part}: {os.listdir(root / part)}")
        own = f"{root}/mounts/"
        self._check(not [each for each in self.engine.mounts() if each.startswith(own)], "no mount is left")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        self._check(children == "", f"processes: {children}")
        locked = f":{os.stat(root / 'locks' / 'held').st_ino} "
        held = [line for line in Path("/proc/locks").read_text().splitlines() if locked in line]
        self._check(not held, f"locks: {held}")


def opened(pid: int) -> int:
    """Descriptors that are no connections: an engine keeps those it has."""
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    return found


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)
