"""The headers of a tar that somebody hostile may have written: one at a time, in bounded memory, nothing extracted.

Not by tarfile's own reading: it takes the length of an extended header, and the number of parts of a sparse file, as
the tar says them. What one header block says is parsed by it.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import NoImage, printable
from ..options import MAX_ID

_BLOCK: Final = 512
_EXTENDED: Final = 1 << 20  # bytes of one extended header: extended attributes are in it, of up to 64 KiB each
_LONG: Final = 4097  # bytes of a path, a NUL at its end included
_CONTENTS: Final = 1 << 36  # bytes of one tar, unpacked
_CHUNK: Final = 1 << 16

_KINDS: Final = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
}


class Stream(Protocol):
    """As much of a file as is needed. `read` gives less than was asked for at the end only."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a tar, as its headers describe it."""

    path: str
    """Absolute, normalized, below the tar's own top."""
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    link: str = ""
    """Where a symlink points, as it is written; of a hard link, the path of the other name."""


class Reader:
    """The members of a tar, in order."""

    def __init__(self, stream: Stream, what: str) -> None:
        self._stream = stream
        self._what = what
        self._left = 0  # bytes of contents not read yet, padding included
        self._size = 0
        self._passed = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield each member.

        Raises:
            NoImage: this is no tar, it ends early, or a header is beyond all bounds.
        """
        said: dict[str, str] = {}
        while True:
            self._skip()
            block = _read(self._stream, _BLOCK)
            if not block or block == bytes(_BLOCK):
                return
            if len(block) < _BLOCK:
                raise self._bad("it ends within a header")
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.TarError, ValueError):
                raise self._bad("it is no tar, or damaged") from None
            size = _number(said["size"]) if "size" in said else info.size
            if not 0 <= size <= _CONTENTS:
                raise self._bad("a file in it is longer than can be")
            # Only a file has contents; the size of a link or directory, where a tar gives one, is of something else.
            kind = _KINDS.get(info.type, "other")
            has_contents = kind == "file" or info.type in _META
            self._size = size if has_contents else 0
            self._left = -(-self._size // _BLOCK) * _BLOCK
            if info.type in _META:
                said |= self._extended(info.type)
                continue
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise self._bad("it has a sparse file in GNU's old format, which no engine writes")
            yield self._member(info, kind, said)
            said = {}

    def contents(self, limit: int) -> bytes:
        """The contents of the member that was yielded last.

        Raises:
            NoImage: they are longer than *limit*, or end early.
        """
        if self._size > limit:
            raise self._bad(f"a file in it has more than {limit} bytes")
        data = _read(self._stream, self._left)
        if len(data) < self._left:
            raise self._bad("it ends within a file")
        self._left = 0
        return data[: self._size]

    def _skip(self) -> None:
        self._passed += self._left + _BLOCK
        if self._passed > _CONTENTS:
            raise self._bad(f"it has more than {_CONTENTS >> 30} GiB")
        if isinstance(self._stream, Slice):
            if not self._stream.skip(self._left):
                raise self._bad("it ends within a file")
            self._left = 0
        while self._left:
            if not (passed := len(self._stream.read(min(self._left, _CHUNK)))):
                raise self._bad("it ends within a file")
            self._left -= passed

    def _extended(self, kind: bytes) -> dict[str, str]:
        if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = os.fsdecode(self.contents(_LONG).split(b"\0")[0])
            return {"path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath": text}
        records = self.contents(_EXTENDED)
        if kind == tarfile.XGLTYPE:
            return {}
        found = {}
        while records:
            # Each is `LENGTH KEY=VALUE\n`, its own length included (pax(1)).
            digits, space, _ = records[:10].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            key, equals, value = records[len(digits) + 1 : length - 1].partition(b"=")
            if not equals or records[length - 1 : length] != b"\n":
                raise self._bad("an extended header is malformed")
            if key in _KEYS:
                found[key.decode()] = os.fsdecode(value)
            records = records[length:]
        return found

    def _member(self, info: tarfile.TarInfo, kind: str, said: dict[str, str]) -> Member:
        path, link = said.get("path", info.name), said.get("linkpath", info.linkname)
        uid = _number(said["uid"]) if "uid" in said else info.uid
        gid = _number(said["gid"]) if "gid" in said else info.gid
        if max(len(path), len(link)) > _LONG or "\0" in path + link:
            raise self._bad("a path in it is longer than can be")
        if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
            raise self._bad(f"{printable(path[:200])} belongs to {uid}:{gid}, which nobody can be")
        if kind == "hard link":
            link = absolute(link)
        return Member(absolute(path), kind, info.mode & 0o7777, uid, gid, self._size, link)

    def _bad(self, why: str) -> NoImage:
        return NoImage(f"{self._what} cannot be read: {why}")


_META: Final = (
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KEYS: Final = (b"path", b"linkpath", b"uid", b"gid", b"size")


class Slice:
    """A part of a file, from *start* on, of *size* bytes."""

    def __init__(self, file: io.BufferedIOBase, start: int, size: int) -> None:
        self._file = file
        self._start = self._at = start
        self._end = start + size

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._end - self._at)
        self._file.seek(self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def skip(self, size: int) -> bool:
        """Pass over *size* bytes; whether there are as many."""
        self._at += size
        return self._at <= self._end

    def again(self) -> Slice:
        """The same, from its beginning."""
        return Slice(self._file, self._start, self._end - self._start)

    @property
    def at(self) -> int:
        """Where in the file it stands."""
        return self._at


def absolute(path: str) -> str:
    """*path* below `/`, in one spelling; `..` leads no higher than that."""
    return os.path.normpath(f"/{path}").replace("//", "/")


def _number(text: str) -> int:
    return int(text) if len(text) <= 20 and text.isascii() and text.isdigit() else -1


def _read(stream: Stream, size: int) -> bytes:
    """*size* bytes, or as many as there are, however many `read` gives at once."""
    parts = []
    while size and (part := stream.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
