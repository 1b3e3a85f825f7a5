"""Read the headers of a tar that an attacker may have written: one at a time, in bounded memory. Nothing is extracted.

Each part has a limit, and all that is read of one image has another (Work): a few bytes may stand for very many.

tarfile parses single header blocks, but does not read the tar: it trusts the tar for the length of an extended header
and for the number of pieces of a sparse file.
"""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import NoImage, printable
from ..options import MAX_ID

_BLOCK: Final = 512
_MAX_EXTENDED: Final = 1 << 20  # bytes of one extended header; it holds extended attributes of up to 64 KiB each
_MAX_PATH: Final = 4097  # bytes of a path, a NUL at its end included
_MAX_FILE: Final = 1 << 36  # bytes of one file
_MAX_UNPACKED: Final = 1 << 32  # bytes of one image: some ten seconds
_MAX_HEADERS: Final = 4_000_000  # of one image, and records of extended headers: a minute at most
_MAX_TEXT: Final = 1 << 28  # bytes of memory for all paths of one image
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


class File(Stream, Protocol):
    """A file in which one can also go to a position."""

    def seek(self, position: int, /) -> int: ...


class Work:
    """What reading one image has taken so far, in all, whatever the image names again and again.

    It may be *unpacked* to so many bytes. Each of these raises NoImage at its limit.
    """

    def __init__(self, unpacked: int = _MAX_UNPACKED) -> None:
        self._limit = unpacked
        self.unpacked = self.headers = self.text = 0

    def unpack(self, size: int) -> None:
        self.unpacked += size
        self._check(self.unpacked, self._limit, "bytes when it is unpacked")

    def header(self) -> None:
        self.headers += 1
        self._check(self.headers, _MAX_HEADERS, "headers")

    def name(self, *names: str) -> None:
        self.text += sum(map(sys.getsizeof, names))
        self._check(self.text, _MAX_TEXT, "bytes of paths")

    def _check(self, done: int, limit: int, what: str) -> None:
        if done > limit:
            hint = "give uid and gid as numbers; of an archive, gunzip first what is packed"
            raise NoImage(f"it takes too long to look into the image: it has more than {limit} {what}", hint=hint)


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
    start: int
    """The position of its contents in the tar."""
    link: str = ""
    """The target of a symlink, as it is written; for a hard link, the path of its other name."""


class Reader:
    """The members of a tar, in order."""

    def __init__(self, stream: Stream, what: str, work: Work) -> None:
        self._stream = stream
        self._what = what
        self._work = work
        self._left = 0  # bytes of contents not read yet, padding included
        self._size = 0
        self._start = 0  # where they begin

    def __iter__(self) -> Iterator[Member]:
        """Yield each member.

        Raises:
            NoImage: this is not a tar, it ends early, or a header exceeds a limit.
        """
        headers: dict[str, str] = {}
        while True:
            if not pass_over(self._stream, self._left):
                raise self._bad("it ends within a file")
            block = read_whole(self._stream, _BLOCK)
            if not block or block == bytes(_BLOCK):
                return
            self._work.header()
            if len(block) < _BLOCK:
                raise self._bad("it ends within a header")
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.TarError, ValueError):
                raise self._bad("it is not a tar, or is damaged") from None
            size = _number(headers["size"]) if "size" in headers else info.size
            if not 0 <= size <= _MAX_FILE:
                raise self._bad("a file in it is too long")
            # Only a file has contents. Where a tar gives a link or a directory a size, no contents follow.
            kind = _KINDS.get(info.type, "other")
            has_contents = kind == "file" or info.type in _META
            self._size = size if has_contents else 0
            self._start += _BLOCK
            padded = self._left = -(-self._size // _BLOCK) * _BLOCK
            if info.type in _META:
                headers |= self._extended(info.type)
                self._start += padded
                continue
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise self._bad("it has a sparse file in GNU's old format, which no engine writes")
            yield self._member(info, kind, headers)
            self._start += padded
            headers = {}

    def contents(self, limit: int) -> bytes:
        """The contents of the member that was yielded last.

        Raises:
            NoImage: they are longer than *limit*, or end early.
        """
        if self._size > limit:
            raise self._bad(f"a file in it has more than {limit} bytes")
        data = read_whole(self._stream, self._left)
        if len(data) < self._left:
            raise self._bad("it ends within a file")
        self._left = 0
        return data[: self._size]

    def beginning(self, size: int) -> bytes:
        """At most *size* bytes, from the beginning of the member that was yielded last."""
        data = read_whole(self._stream, min(size, self._size))
        self._left -= len(data)
        return data

    def _extended(self, kind: bytes) -> dict[str, str]:
        if kind in _NAMES:
            text = os.fsdecode(self.contents(_MAX_PATH).split(b"\0")[0])
            return {"path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath": text}
        records = self.contents(_MAX_EXTENDED)
        if kind == tarfile.XGLTYPE:
            return {}
        found, at = {}, 0
        while at < len(records):
            self._work.header()
            # Each is `LENGTH KEY=VALUE\n`, its own length included (pax(1)).
            digits, space, _ = records[at : at + 10].partition(b" ")
            end = at + (int(digits) if space and digits.isdigit() else 0)
            key, equals, value = records[at + len(digits) + 1 : max(at, end - 1)].partition(b"=")
            if not equals or records[end - 1 : end] != b"\n":
                raise self._bad("an extended header is malformed")
            if key in _KEYS:
                found[key.decode()] = os.fsdecode(value)
            at = end
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
        path = absolute(path)
        self._work.name(path, link)
        return Member(path, kind, info.mode & 0o7777, uid, gid, self._size, self._start, link)

    def _bad(self, why: str) -> NoImage:
        return NoImage(f"{self._what} cannot be read: {why}")


_NAMES: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_META: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, *_NAMES)
_KEYS: Final = (b"path", b"linkpath", b"uid", b"gid", b"size")


class Slice:
    """*size* bytes of a file, from *start* on; *at* is the position in the file."""

    def __init__(self, file: File, start: int, size: int) -> None:
        self._file = file
        self.start = self.at = start
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
        return Slice(self._file, self.start, self._end - self.start)


def absolute(path: str) -> str:
    """*path* below `/`, normalized; `..` leads no higher than `/`."""
    return os.path.normpath(f"/{path}").replace("//", "/")


def _number(text: str) -> int:
    return int(text) if len(text) <= 20 and text.isascii() and text.isdigit() else -1


def pass_over(stream: Stream, size: int) -> bool:
    """Go on by *size* bytes; whether there are that many."""
    if isinstance(stream, Slice):
        return stream.skip(size)
    while size and (passed := len(stream.read(min(size, _CHUNK)))):
        size -= passed
    return size == 0


def read_whole(stream: Stream, size: int) -> bytes:
    """*size* bytes, or fewer where the stream ends before."""
    chunks = []
    while size and (chunk := stream.read(min(size, _CHUNK))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
