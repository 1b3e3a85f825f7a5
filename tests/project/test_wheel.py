"""hostprep as pip, pipx and uv install it: the command, nothing else, and it says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.fixtures import Command
from tests.support.host import PYTHON, REPOSITORY, Host

from .test_install import VERSION, run, staged

__all__ = ["staged"]
NOT_DONE = (
    "This copy of hostprep starts nothing at boot, and reads no settings file: make install, in a checkout, brings the"
    " systemd units, the settings file, the manual pages and completions (docs/install.md)."
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, or will have: a build leaves files in it."""
    made = tmp_path_factory.mktemp("checkout")
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, check=True).stdout.rstrip(b"\0").split(b"\0")
    there = [name for name in names if (REPOSITORY / os.fsdecode(name)).exists()]
    subprocess.run(["cp", "--parents", "--no-dereference", "-t", made, *there], cwd=REPOSITORY, check=True)
    return made


def test_wheel(checkout: Path, tmp_path: Path) -> None:
    """The wheel holds the package hostprep, each file of it, and what a wheel says of itself."""
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    call([PYTHON, "-m", "pip", "wheel", *offline, "--wheel-dir", tmp_path, checkout])
    (wheel,) = tmp_path.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    package = checkout / "plugin"
    own = {str(path.relative_to(package)) for path in package.rglob("*") if path.suffix in (".py", ".typed")}
    assert len(own) > 80
    assert {name for name in names if not name.startswith(f"hostprep-{VERSION}.dist-info/")} == own


def says_it(help_: str) -> bool:
    return NOT_DONE in re.sub(r"\s+", " ", help_)


@pytest.mark.root
def test_what_is_not_done(hostprep: Command, staged: Path) -> None:
    """Help says what is missing where it is missing: neither of what make install made, nor in the managed plugin."""
    assert says_it(hostprep("--help").out)
    assert not says_it(run(staged, "--help").stdout)
    managed = subprocess.run(
        [PYTHON, "-m", "hostprep", "--help"],
        cwd=REPOSITORY, env={"HOSTPREP_MANAGED": "1"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "Usage: hostprep" in managed.stdout
    assert not says_it(managed.stdout)


@pytest.mark.root
@pytest.mark.skipif(os.environ.get("CI") != "true", reason="downloads packages: only where CI=true")
@pytest.mark.thorough
class TestInstalled:
    """By real tools, with real packages."""

    def test_pip(self, checkout: Path, tmp_path: Path, host: Host) -> None:
        """pip, in a fresh environment."""
        python = environment(tmp_path / "venv")
        call([python, "-m", "pip", "install", "--quiet", checkout])
        works(tmp_path / "venv/bin", host)

    def test_pipx(self, checkout: Path, tmp_path: Path, host: Host) -> None:
        """pipx."""
        python = environment(tmp_path / "venv", "pipx")
        places = {"PIPX_HOME": tmp_path / "home", "PIPX_BIN_DIR": tmp_path / "bin", "PIPX_MAN_DIR": tmp_path / "man"}
        call([python, "-m", "pipx", "install", checkout], places)
        assert [path.name for path in (tmp_path / "bin").iterdir()] == ["hostprep"]
        works(tmp_path / "bin", host)

    def test_uv(self, checkout: Path, tmp_path: Path, host: Host) -> None:
        """uv."""
        python = environment(tmp_path / "venv", "uv")
        places = {f"UV_{name}": tmp_path / name.lower() for name in ("TOOL_DIR", "TOOL_BIN_DIR", "CACHE_DIR")}
        call([python, "-m", "uv", "tool", "install", "--python", python, checkout], places)
        assert [path.name for path in (tmp_path / "tool_bin_dir").iterdir()] == ["hostprep"]
        works(tmp_path / "tool_bin_dir", host)


def environment(directory: Path, *packages: str) -> Path:
    """A fresh virtual environment with *packages*; its Python."""
    call([os.path.realpath(sys.executable), "-m", "venv", directory])
    python = directory / "bin/python"
    if packages:
        call([python, "-m", "pip", "install", "--quiet", *packages])
    return python


def call(argv: Sequence[str | Path], environ: Mapping[str, str | Path] | None = None) -> None:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        argv, env={**own, **(environ or {})}, cwd="/", capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def works(directory: Path, host: Host) -> None:
    """The command in *directory* knows its version, says what is not done, and makes a volume."""

    def ask(*arguments: str) -> str:
        argv = [str(directory / "hostprep"), *arguments]
        done = subprocess.run(
            argv, env=host.process_environ(), cwd="/", capture_output=True, text=True, check=False, timeout=60
        )
        said = [line for line in done.stderr.splitlines() if "are in no engine's record" not in line]  # there is none
        assert (done.returncode, said) == (0, [])
        return done.stdout

    assert ask("--version").strip() == VERSION
    assert says_it(ask("--help"))
    assert ask("create", "mongo", "-o", "uid=184") == "mongo\n"
    assert ask("ls").splitlines()[1].startswith("mongo\t184:0\t")
