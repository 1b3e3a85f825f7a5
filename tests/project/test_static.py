"""What is looked at without being run: installed packages, what the linter is told to overlook, the tests."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import clocks
from tests.support.host import REPOSITORY

OWN = "tests/project/test_static.py"
LOCKED = (REPOSITORY / "requirements.txt").read_text()
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", LOCKED, re.M)}
HASHES = {
    canonicalize_name(each.partition("==")[0]): re.findall(r"--hash=sha256:[0-9a-f]{64}\b", each)
    for each in re.split(r"\n(?=\w)", LOCKED)
}


def project() -> list[Requirement]:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [Requirement(each) for each in declared["dependencies"]]


class TestRequirements:
    def test_what_is_declared_is_locked(self) -> None:
        """Each package that hostprep needs is locked, at a version that it takes, and nothing else is."""
        found: set[str] = set()
        ahead = project()
        while ahead:
            wanted = ahead.pop()
            name = canonicalize_name(wanted.name)
            assert wanted.specifier.contains(PINS[name]), f"make lock: {wanted}, {PINS[name]}"
            if name not in found:
                found.add(name)
                needs = map(Requirement, importlib.metadata.requires(name) or [])
                ahead += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        assert found == PINS.keys()

    def test_every_file_has_a_hash(self) -> None:
        """Each package is known by the hashes of its files, and of nobody's host is there a word."""
        assert HASHES.keys() == PINS.keys()
        assert [name for name, found in HASHES.items() if not found] == []
        assert "://" not in LOCKED

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        """A package of the right name and version that is another than the one that was locked is not installed."""
        name = canonicalize_name("blinker")
        version = PINS[name]
        with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            info = f"{name}-{version}.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        environ = {**kept, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
        base = os.path.realpath(sys.executable)
        argv = [
            "make", "--silent", "-C", str(REPOSITORY), "install",
            f"SYSTEM_PYTHON={base}", f"DESTDIR={tmp_path}/staged",
        ]  # fmt: skip
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120, check=False)

        assert done.returncode != 0
        assert "DO NOT MATCH THE HASHES" in done.stderr
        assert "nothing was changed" in done.stderr
        assert not (tmp_path / "staged/usr/local/lib/hostprep/current").exists()


def test_what_is_overlooked_has_a_reason() -> None:
    """Each warning about security that the linter was told to overlook has the reason beside it."""
    argv = [
        "git",
        "grep",
        "--untracked",
        "-hE",
        "# noqa: .*\\bS[0-9]{3}",
        "--",
        "*.py",
        ":!tests/project/test_static.py",
    ]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if not re.search(r"# noqa: [A-Z0-9, ]+\s+# \w", line)] == []


@pytest.mark.parametrize("family", ["S", "B", "FBT", "G"])
def test_the_linter_looks_for_it(family: str) -> None:
    """The linter's rules about security, and the families beside it, are on for all that is installed."""
    lint = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert family in lint["select"]
    assert not any(pattern.startswith(("plugin", "hostprep")) for pattern in lint["per-file-ignores"])
    assert set(lint["ignore"]) == {"S603", "S607"}


class TestClocks:
    """A loaded machine is a usual one: no test fails because something took long."""

    @pytest.mark.parametrize(
        "code",
        [
            "assert time.monotonic() - begun < 5",
            "begun = time.monotonic()\nwork()\nassert 1 < time.monotonic() - begun < 3",
            "begun = perf_counter()\nwork()\ntook = perf_counter() - begun\nassert took < 5, took",
            "begun, n = time.time(), 0\nwork()\nassert abs(begun - made) < 10",
            "def took():\n    begun = time.monotonic()\n    return time.monotonic() - begun\nassert took() < 3",
            "class T:\n    def a(self):\n        self.s.append(time.monotonic() - b)\n"
            "    def b(self):\n        assert max(self.s) < 4",
            "assert all(took < 1 for took in [time.monotonic() - begun])",
            "end = time.monotonic() + 3\nwork()\nassert time.monotonic() < end",
        ],
    )
    def test_what_is_found(self, code: str) -> None:
        """The time that something took is found in an assertion, directly, by another name, or as a deadline."""
        assert clocks.timed_assertions(code) == [1 + code.count("\n")]

    @pytest.mark.parametrize(
        "code",
        [
            "end = time.monotonic() + 60\nwhile not there():\n    assert time.monotonic() < end",
            "before = time.time()\nmade = work()\nassert before <= made <= time.time()",
            "began = time.monotonic()\nprint(time.monotonic() - began)\nassert work(time.monotonic() + 60) < 5",
        ],
    )
    def test_what_is_not(self, code: str) -> None:
        """What keeps a loop from running for ever is not found, nor the order of two moments."""
        assert clocks.timed_assertions(code) == []

    @pytest.mark.parametrize(
        ("code", "short"),
        [
            ("eventually(there, 'it is there', 3)", True),
            ("wait_for(there, 'it', seconds=59.5)", True),
            ("process.communicate(timeout=10)", True),
            ("eventually(there, 'it is there')\nwait_for(there, 'it', 60)\nprocess.wait(timeout=limit)", False),
        ],
    )
    def test_limits(self, code: str, short: bool) -> None:  # noqa: FBT001
        """A limit below a minute is found, where it is a number."""
        assert bool(clocks.short_limits(code)) is short

    def test_hypothesis(self) -> None:
        """hypothesis fails no example because it took long."""
        assert hypothesis.settings().deadline is None
        assert hypothesis.HealthCheck.too_slow in hypothesis.settings().suppress_health_check

    @pytest.mark.parametrize("find", [clocks.timed_assertions, clocks.short_limits], ids=lambda find: find.__name__)
    def test_no_test(self, find: Callable[[str], list[int]]) -> None:
        """No test asserts how long something took, and each limit leaves a minute at least."""
        files = sorted((REPOSITORY / "tests").rglob("*.py"))
        found = [f"{file.relative_to(REPOSITORY)}:{line}" for file in files for line in find(file.read_text())]
        assert found == []
