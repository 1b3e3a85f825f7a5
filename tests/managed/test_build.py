"""What is built: small, the same each time, of Debian's packages and this package alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from testbed.engine import TOP, Engine

from .building import build
from .conftest import DRIVER, ID, Built, Plugin

pytestmark = pytest.mark.engine

MEGABYTE = 1_000_000


def contents(root: Path) -> dict[str, tuple[object, ...]]:
    """Of each file: what it is, whose, since when, and what is in it; of a directory the first two."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        st = path.lstat()
        found[str(path.relative_to(root))] = (st.st_mode, st.st_uid, st.st_gid) + (
            (os.readlink(path),)
            if path.is_symlink()
            else (st.st_mtime, hashlib.sha256(path.read_bytes()).hexdigest())
            if path.is_file()
            else ()
        )
    return found


def test_reproducible(plugin: Plugin, made: str, built: Built) -> None:
    """Two builds make the same: the id, and each file's content, owner, mode and time of change."""
    first, second = contents(plugin.rootfs), contents(built.directory / "rootfs")

    assert made == built.id
    assert [path for path in second if first.get(path) != second[path]] == []  # the engine adds places for its mounts


def test_size(built: Built) -> None:
    """It takes less than 170 MB on disk."""
    files = [path.lstat() for path in (built.directory / "rootfs").rglob("*")]
    size = sum(st.st_blocks * 512 for st in {(st.st_dev, st.st_ino): st for st in files}.values())
    print(f"{size / MEGABYTE:.0f} MB")
    assert size < 170 * MEGABYTE


def test_packages(built: Built) -> None:
    """Every file of it is of a package of Debian's, made from one, or hostprep's: nothing came by pip."""
    rootfs = built.directory / "rootfs"
    lists = (rootfs / "var/lib/dpkg/info").glob("*.list")
    known = {line.lstrip("/") for each in lists for line in each.read_text().splitlines()}
    # Debian's own directories in the names that they had before /bin and /lib became links.
    known |= {f"usr/{line}" for line in known if line.startswith(("bin/", "lib", "sbin/"))}
    ours = ("usr/bin/hostprep", "usr/lib/hostprep/")
    made = ("etc/", "root/", "usr/share/", "var/")  # what the packages' own scripts configure
    foreign = [
        path
        for path in contents(rootfs)
        if path not in known
        and not path.startswith((*ours, *made))
        and "__pycache__" not in path
        and not (rootfs / path).is_dir()
        and not (rootfs / path).is_symlink()
    ]
    assert foreign == []


def sources(package: Path) -> dict[str, str]:
    """The text of each module of a package."""
    return {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}


def test_package(built: Built) -> None:
    """The package in it is this checkout's."""
    there = built.directory / "rootfs/usr/lib/hostprep/hostprep"
    assert sources(there) == sources(TOP / "plugin/hostprep")


def test_id(plugin: Plugin, made: str) -> None:
    """The id of the build is in the plugin, and in the description that docker plugin inspect shows."""
    assert f"build {made}, as {DRIVER}\n" in (plugin.rootfs / ID).read_text()
    assert f"build {made})" in plugin.inspect()["Config"]["Description"]


def test_twice(plugin: Plugin, engine: Engine) -> None:
    """A plugin of that name is not replaced without a word."""
    said = build(engine, "make", "--silent", "plugin", fails=True)
    assert f"there is a plugin {DRIVER} already (docker plugin rm -f {DRIVER}; volumes and data stay)" in said
