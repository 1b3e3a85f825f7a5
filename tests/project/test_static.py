"""What is looked at without being run: the packages that are installed, and what the linter was told to overlook."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.host import REPOSITORY

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
    argv = ["git", "grep", "--untracked", "-hE", "# noqa: .*\\bS[0-9]{3}", "--", "*.py", ":!tests/unit/test_static.py"]
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
