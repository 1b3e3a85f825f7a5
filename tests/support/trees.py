"""Trees from lines: `dir a 1000:1000 2750`, `file a/b 0:0 644 text`, `symlink a/evil /etc`, `fifo`, `link`."""

from __future__ import annotations

import os
from pathlib import Path


def make_tree(root: Path, *lines: str) -> None:
    """Make what the lines say below *root*."""
    for line in lines:
        kind, name, *rest = line.split()
        path = root / name
        if kind == "symlink":
            path.symlink_to(rest.pop(0))
        elif kind == "link":
            path.hardlink_to(root / rest.pop(0))
        elif kind == "dir":
            path.mkdir(parents=True)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, 0o20600, os.makedev(1, 3))
        else:
            path.write_text(rest[2] if len(rest) > 2 else "")
        if rest:
            uid, gid = map(int, rest[0].split(":"))
            os.chown(path, uid, gid, follow_symlinks=False)
        if len(rest) > 1:
            os.chmod(path, int(rest[1], 8))


def owners(root: Path) -> dict[str, tuple[int, int]]:
    """Owner and group of everything below *root*, by its path there."""
    found = {}
    for above, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(above, name)
            st = os.lstat(path)
            found[os.path.relpath(path, root)] = (st.st_uid, st.st_gid)
    return found


def many(root: Path, count: int) -> None:
    """So many empty files, a thousand a directory."""
    for number in range(count):
        directory = root / str(number // 1000)
        if number % 1000 == 0:
            directory.mkdir()
        os.close(os.open(directory / str(number), os.O_CREAT | os.O_WRONLY))
