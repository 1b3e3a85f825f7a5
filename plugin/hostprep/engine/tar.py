"""Read the headers of a tar that an attacker may have written: one at a time, in bounded memory. Nothing is extracted.

tarfile parses single header blocks, but does not read the tar: it trusts the tar for the length of an extended header
and for the number of pieces of a sparse file.
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
_MAX_EXTENDED: Final = 1 << 20  # bytes of one extended header; it holds extended attributes of up to 64 KiB each
_MAX_PATH: Final = 4097  # bytes of a path, a NUL at its end included
_MAX_TAR: Final = 1 << 36  # bytes of one tar, unpacked
_CHUNK: Final = 1 << 16

_KINDS: Final = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), "file"),
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
}


class Stream(Protocol):
    """A file that can be read. Only at its end `read` gives less than was asked for."""

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
    """The target of a symlink, as it is written; for a hard link, the path of its other name."""


class Reader:
    """The members of a tar, in order."""

    def __init__(self, stream: Stream, what: str) -> None:
        self._stream = stream
        self._what = what
        self._left = 0  # bytes of contents not read yet, padding included
        self._size = 0
        self._position = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield each member.

        Raises:
            NoImage: this is not a tar, it ends early, or a header exceeds a limit.
        """
        headers: dict[str, str] = {}
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
                raise self._bad("it is not a tar, or is damaged") from None
            size = _number(headers["size"]) if "size" in headers else info.size
            if not 0 <= size <= _MAX_TAR:
                raise self._bad("a file in it is too long")
            # Only a file has contents. Where a tar gives a link or a directory a size, no contents follow.
            kind = _KINDS.get(info.type, "other")
            has_contents = kind == "file" or info.type in _META
            self._size = size if has_contents else 0
            self._left = -(-self._size // _BLOCK) * _BLOCK
            if info.type in _META:
                headers |= self._extended(info.type)
                continue
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise self._bad("it has a sparse file in GNU's old format, which no engine writes")
            yield self._member(info, kind, headers)
            headers = {}

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
        self._position += self._left + _BLOCK
        if self._position > _MAX_TAR:
            raise self._bad(f"it has more than {_MAX_TAR >> 30} GiB")
        if isinstance(self._stream, Slice):
            if not self._stream.skip(self._left):
                raise self._bad("it ends within a file")
            self._left = 0
        while self._left:
            if not (skipped := len(self._stream.read(min(self._left, _CHUNK)))):
                raise self._bad("it ends within a file")
            self._left -= skipped

    def _extended(self, kind: bytes) -> dict[str, str]:
        if kind in _NAMES:
            text = os.fsdecode(self.contents(_MAX_PATH).split(b"\0")[0])
            return {"path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath": text}
        records = self.contents(_MAX_EXTENDED)
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

    def _member(self, info: tarfile.TarInfo, kind: str, headers: dict[str, str]) -> Member:
        path, link = headers.get("path", info.name), headers.get("linkpath", info.linkname)
        uid = _number(headers["uid"]) if "uid" in headers else info.uid
        gid = _number(headers["gid"]) if "gid" in headers else info.gid
        if max(len(path), len(link)) > _MAX_PATH or "\0" in path + link:
            raise self._bad("a path in it is too long")
        if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
            raise self._bad(f"{printable(path[:200])} belongs to {uid}:{gid}, which is out of range")
        if kind == "hard link":
            link = absolute(link)
        return Member(absolute(path), kind, info.mode & 0o7777, uid, gid, self._size, link)

    def _bad(self, why: str) -> NoImage:
        return NoImage(f"{self._what} cannot be read: {why}")


_NAMES: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_META: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, *_NAMES)
_KEYS: Final = (b"path", b"linkpath", b"uid", b"gid", b"size")


class Slice:
    """*size* bytes of a file, from *start* on; *at* is the position in the file."""

    def __init__(self, file: io.BufferedIOBase, start: int, size: int) -> None:
        self._file = file
        self._start = self.at = start
        self._end = start + size

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._end - self.at)
        self._file.seek(self.at)
        data = self._file.read(left if size < 0 else min(size, left))
        self.at += len(data)
        return data

    def skip(self, size: int) -> bool:
        """Skip *size* bytes; whether there are that many."""
        self.at += size
        return self.at <= self._end

    def again(self) -> Slice:
        """The same bytes, from the beginning."""
        return Slice(self._file, self._start, self._end - self._start)


def absolute(path: str) -> str:
    """*path* below `/`, normalized; `..` leads no higher than `/`."""
    return os.path.normpath(f"/{path}").replace("//", "/")


def _number(text: str) -> int:
    return int(text) if len(text) <= 20 and text.isascii() and text.isdigit() else -1


def _read(stream: Stream, size: int) -> bytes:
    """*size* bytes, or fewer where the stream ends before."""
    chunks = []
    while size and (chunk := stream.read(min(size, _CHUNK))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
