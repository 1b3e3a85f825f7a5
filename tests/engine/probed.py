"""Images to probe: every way in which an image tells, or does not tell, its user and the owner of its data."""

from __future__ import annotations

import io
import tarfile
from typing import NamedTuple

from testbed.images import Entry, add, busybox

USERS = b"""\
root:x:0:0:root:/:/bin/sh
app:x:1000:1001:app:/:/bin/sh
db:x:999:998:db:/:/bin/sh
"""
GROUPS = b"""\
root:x:0:
app:x:1001:
db:x:998:
media:x:44:app,db
"""
FILES = (Entry("etc/passwd", 0o644, content=USERS), Entry("etc/group", 0o644, content=GROUPS))
# What an image's program does in the tests: it writes where its volume is.
WRITE = "for d in $DATA; do echo written > $d/file || exit 1; done; id -u"
# As the official images of databases do: as root first, then as the owner of the data.
ENTRYPOINT = b"#!/bin/sh\nchown db:db /var/lib/db\n" + b'exec su -m -s "$1" db -c "$3"\n'


class Made(NamedTuple):
    """An image, and what a probe of it must find."""

    changes: tuple[str, ...]
    entries: tuple[Entry, ...]
    runs_as: tuple[int, int]
    groups: tuple[int, ...]
    owners: dict[str, tuple[int, int]]
    """The owner that a volume needs, by directory."""


def program(*directories: str, user: str = "") -> tuple[str, ...]:
    return (
        *((f"USER {user}",) if user else ()),
        *(f"VOLUME {directory}" for directory in directories),
        f'ENV DATA="{" ".join(directories)}"',
        f'CMD ["/bin/sh", "-euc", "{WRITE}"]',
    )


OWNED = (Entry("data", 0o750, 1000, 1001),)
MADE = {
    "user-name": Made(program("/data", user="app"), OWNED, (1000, 1001), (44,), {"/data": (1000, 1001)}),
    "user-number": Made(program("/data", user="1000"), OWNED, (1000, 1001), (44,), {"/data": (1000, 1001)}),
    "user-unknown": Made(program("/data", user="4242"), (), (4242, 0), (), {"/data": (4242, 0)}),
    "user-group": Made(program("/data", user="app:db"), (), (1000, 998), (), {"/data": (1000, 998)}),
    "user-numbers": Made(program("/data", user="7:8"), (), (7, 8), (), {"/data": (7, 8)}),
    "user-none": Made(program("/data"), (), (0, 0), (), {"/data": (0, 0)}),
    "volumes": Made(
        program("/data", "/var/lib/db", user="app"),
        (*OWNED, Entry("data/seed", 0o640, 1000, 1001, b"seed"), Entry("var", 0o755), Entry("var/lib", 0o755)),
        (1000, 1001),
        (44,),
        {"/data": (1000, 1001), "/var/lib/db": (1000, 1001)},
    ),
    "others-data": Made(
        program("/data", user="app"), (Entry("data", 0o755, 999, 998),), (1000, 1001), (44,), {"/data": (1000, 1001)}
    ),
    "switches": Made(
        (*program("/var/lib/db"), 'ENTRYPOINT ["/entrypoint"]'),
        (
            Entry("entrypoint", 0o755, content=ENTRYPOINT),
            Entry("var", 0o755),
            Entry("var/lib", 0o755),
            Entry("var/lib/db", 0o700, 999, 998),
        ),
        (0, 0),
        (),
        {"/var/lib/db": (999, 998)},
    ),
}


def made(name: str) -> bytes:
    """The files of one of MADE."""
    return busybox(*FILES, *MADE[name].entries)


def scratch(*entries: Entry, links: dict[str, str] | None = None) -> bytes:
    """An image with nothing in it but *entries*."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            add(tar, entry)
        for path, target in (links or {}).items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    return buffer.getvalue()
