"""Images for a private engine without a registry: a busybox in a tar, for `docker import`."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from .engine import PATH, Unavailable

USERS = """\
root:x:0:0:root:/:/bin/sh
mongodb:x:184:998:mongodb:/:/bin/sh
"""
GROUPS = """\
root:x:0:
mongodb:x:998:
"""


class Entry(NamedTuple):
    """A file, or without content a directory, of an image."""

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    content: bytes | None = None
    access: bytes = b""
    """An access control list, as the kernel has it."""


def busybox(*more: Entry) -> bytes:
    """A root file system with busybox, /tmp, a user mongodb (184:998), and *more*, also in their place, as a tar."""
    program = shutil.which("busybox", path=PATH)
    if not program:
        raise Unavailable("busybox is not installed (package busybox-static)")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=60, check=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entries = [
            Entry("bin", 0o755),
            Entry("etc", 0o755),
            Entry("tmp", 0o1777),
            Entry("etc/passwd", 0o644, content=USERS.encode()),
            Entry("etc/group", 0o644, content=GROUPS.encode()),
            Entry("bin/busybox", 0o755, content=Path(program).read_bytes()),
            *(Entry(path[1:], 0o755, content=Path(path).read_bytes()) for path in libraries(program)),
            *more,
        ]
        for entry in {entry.path: entry for entry in entries}.values():
            add(tar, entry)
        for applet in set(applets.stdout.split()) - {"busybox"}:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path)
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    if entry.access:
        text = entry.access.decode("utf-8", "surrogateescape")
        info.pax_headers = {"SCHILY.xattr.system.posix_acl_access": text, "SCHILY.xattr.system.posix_acl_default": text}
    if entry.content is None:
        info.type = tarfile.DIRTYPE
    else:
        info.size = len(entry.content)
    tar.addfile(info, io.BytesIO(entry.content or b""))


def libraries(program: str) -> list[str]:
    """What *program* loads, by path: nothing where it is linked statically, as busybox-static's is."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=60, check=False)
    return [word for word in listed.stdout.split() if word.startswith("/")]
