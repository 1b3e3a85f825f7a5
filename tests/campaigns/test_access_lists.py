"""Access control lists (acl(5)): hostprep hands none on.

On each file system, with real lists, and asked of the kernel as the users whom the lists name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hostprep.volumes.driver import Driver
from tests.support.disks import KINDS, Disk
from tests.support.fixtures import Command, OpenDriver
from tests.support.host import Host, mode, mounted, owner, soon
from tests.support.users import has_list, may, set_list

pytestmark = pytest.mark.root
OPTIONS: Final = {"uid": "184", "gid": "998", "mode": "0770"}
STRANGER: Final = (1005, 1005)
GROUP: Final = (7, 998)
HANDED_ON: Final = ("u::rwx", "u:1005:rwx", "g::r-x", "m::rwx", "o::---")


@pytest.fixture(params=["tmpfs", *KINDS])
def srv(request: pytest.FixtureRequest, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for `path`, on a file system of its own."""
    if request.param == "tmpfs":
        there = mounted("-t", "tmpfs", "none", str(host.srv))
    else:
        there = Disk(tmp_path_factory.mktemp("images"), request.param).mounted(host.srv)
    with there:
        host.srv.chmod(0o755)
        yield host.srv


class TestMade:
    """What hostprep makes below a directory that hands a list on."""

    def test_by_path(self, driver: Driver, srv: Path) -> None:
        """Whom nobody declared may do nothing, the declared group what was declared."""
        set_list(srv, *HANDED_ON, default=True)
        data = srv / "data"
        driver.create("mongo", {**OPTIONS, "path": str(data)}, soon())
        assert not has_list(data)
        assert (may(data, *STRANGER), may(data, *GROUP), may(data, 184, 5)) == ("---", "rwx", "rwx")
        status = driver.get("mongo")["Status"]
        assert (status["mode"], status["ready"], status["warnings"]) == ("0770", True, [])

    def test_by_prepare(self, hostprep: Command, srv: Path) -> None:
        """A directory that `prepare` makes has no list either."""
        set_list(srv, *HANDED_ON, default=True)
        done = hostprep("prepare", str(srv / "data"), "-o", "uid=184", "-o", "gid=998", "-o", "mode=0770")
        assert done.code == 0, done.err
        assert not has_list(srv / "data")
        assert (may(srv / "data", *STRANGER), may(srv / "data", *GROUP)) == ("---", "rwx")

    def test_a_root(self, host: Host, open_driver: OpenDriver) -> None:
        """Neither hostprep's root, nor its parts, nor a volume in it has one."""
        set_list(host.root.parent, *HANDED_ON, default=True)
        open_driver().create("mongo", OPTIONS, soon())
        assert [path for path in (host.root, *host.root.rglob("*")) if has_list(path)] == []

    def test_in_an_older_root(self, host: Host, driver: Driver) -> None:
        """A volume has none where an older hostprep let its root inherit one."""
        set_list(host.root / "volumes", *HANDED_ON, default=True)
        driver.create("mongo", OPTIONS, soon())
        assert not has_list(host.volume("mongo"))
        assert not has_list(host.data("mongo"))
        assert (may(host.data("mongo"), *STRANGER), may(host.data("mongo"), *GROUP)) == ("---", "rwx")

    def test_while_it_is_made(self, host: Host, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """From mkdir(2) on nobody but root gets in, until the directory is as declared."""
        set_list(host.srv, *HANDED_ON, default=True)
        data, seen = host.srv / "data", []
        for name in ("mkdir", "open", "getxattr", "removexattr", "fchmod"):
            call = getattr(os, name)

            def noted(*args: object, _call: object = call, **named: object) -> object:
                done = _call(*args, **named)  # type: ignore[operator]
                if data.exists():
                    seen.append((mode(data), owner(data)))
                return done

            monkeypatch.setattr(os, name, noted)
        driver.create("mongo", {**OPTIONS, "path": str(data)}, soon())
        monkeypatch.undo()
        closed = [what for what in seen if what == ("0700", (0, 0))]
        assert len(closed) > 3
        assert {bits for bits, who in seen if who != (184, 998)} == {"0700"}
