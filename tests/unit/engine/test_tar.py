"""Headers of tars, honest and hostile: they are read correctly, and within limits."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.engine.tar import Member, Reader, Slice, Work
from hostprep.errors import NoImage


def packed(*infos: tarfile.TarInfo, contents: bytes = b"", kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for info in infos:
            info.size = len(contents) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(contents))
    return buffer.getvalue()


def info(path: str, **changed: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(path)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def read(data: bytes) -> list[Member]:
    return list(Reader(io.BytesIO(data), "it", Work()))


def header(**changed: Any) -> bytes:
    """One header block as it is, whatever it says."""
    made = info("x", **changed)
    return made.tobuf(tarfile.GNU_FORMAT)[-512:]


def said(key: str, value: str) -> bytes:
    record = f" {key}={value}\n".encode()
    length = len(record) + len(str(len(record) + 2))
    return f"{length}".encode() + record


def extended(data: bytes, size: int | None = None) -> bytes:
    block = header(type=tarfile.XHDTYPE, size=len(data) if size is None else size)
    return block + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members(kind: int) -> None:
    """In each format kind, owner, mode and links are read."""
    data = packed(
        info("./a/", type=tarfile.DIRTYPE, mode=0o2750, uid=184, gid=998),
        info("a/file", mode=0o640, uid=5, gid=6),
        info("a/link", type=tarfile.SYMTYPE, linkname="../b"),
        info("a/hard", type=tarfile.LNKTYPE, linkname="a/file"),
        info("a/null", type=tarfile.CHRTYPE),
        contents=b"text",
        kind=kind,
    )
    found = read(data)
    assert [(m.path, m.kind, m.link) for m in found] == [
        ("/a", "directory", ""),
        ("/a/file", "file", ""),
        ("/a/link", "symlink", "../b"),
        ("/a/hard", "hard link", "/a/file"),
        ("/a/null", "other", ""),
    ]
    assert [(m.mode, m.uid, m.gid) for m in found[:2]] == [(0o2750, 184, 998), (0o640, 5, 6)]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers(kind: int) -> None:
    """Long names, other letters and large ids are read in each format that has them."""
    long, large = "d/" * 150 + "ä", 4294967294
    (found,) = read(packed(info(long, type=tarfile.SYMTYPE, linkname=long, uid=large, gid=large), kind=kind))
    assert (found.path, found.link, found.uid, found.gid) == (f"/{long}", long, large, large)


def test_contents() -> None:
    """The current member's contents can be read up to a limit; whether they are or not, the next member is found."""
    data = packed(info("a"), info("b"), info("c"), contents=b"x" * 1000)
    reader = Reader(io.BytesIO(data), "it", Work())
    found = {member.path: reader.contents(1000) for member in reader if member.path != "/b"}
    assert found == {"/a": b"x" * 1000, "/c": b"x" * 1000}
    reader = Reader(io.BytesIO(data), "it", Work())
    next(iter(reader))
    with pytest.raises(NoImage, match="999"):
        reader.contents(999)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../../etc/passwd", "//etc/passwd", "./etc//passwd"]
)
def test_paths_stay_inside(path: str) -> None:
    """However it is spelled, a path lies below the tar's own top."""
    assert [member.path for member in read(packed(info(path)))] == ["/etc/passwd"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 512, "not a tar"),
        (b"\0" * 511 + b"x", "not a tar"),
        (b"x", "within a header"),
        (header(size=1 << 40) + bytes(1024), "too long"),
        (header(size=1 << 30), "ends within"),
        (header(size=-1), "too long"),
        (header(uid=4294967295), "4294967295"),
        (header(gid=-5), "-5"),
        (header(uid=1 << 54), "out of range"),
        (header(type=tarfile.GNUTYPE_SPARSE), "sparse"),
        (extended(b"", size=1 << 34), "more than"),
        (extended(b"", size=(1 << 20) + 1), "more than"),
        (header(type=tarfile.GNUTYPE_LONGNAME, size=1 << 33), "more than"),
        (header(type=tarfile.XGLTYPE, size=1 << 33), "more than"),
        (extended(b"no number"), "malformed"),
        (extended(b"99 path=x\n"), "malformed"),
        (extended(b"0 path=x\n"), "malformed"),
        (extended(b"4 pa\n"), "malformed"),
        (extended(b"9999999999999 path=x\n"), "malformed"),
        (extended(said("size", "99999999999999999999999")) + header(), "too long"),
        (extended(said("size", "-1")) + header(), "too long"),
        (extended(said("uid", "9" * 5000)) + header(), "out of range"),
        (extended(said("uid", "5.5")) + header(), "out of range"),
        (extended(said("path", "a" * 5000)) + header(), "too long"),
        (extended(said("linkpath", "a\0b")) + header(type=tarfile.SYMTYPE), "too long"),
    ],
    ids=range(25),
)
def test_hostile(data: bytes, words: str) -> None:
    """A file that is not a tar, ends early or exceeds a limit is refused in printable words and little memory."""
    tracemalloc.start()
    with pytest.raises(NoImage) as caught:
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert peak < 4 << 20


def test_chain_of_extended_headers() -> None:
    """Of many extended headers in a row only one is in memory."""

    class Endless(io.RawIOBase):
        block = extended(said("comment", "x" * 60000))
        at = 0

        def read(self, size: int = -1, /) -> bytes:
            part = (self.block * 2)[self.at : self.at + size]
            self.at = (self.at + size) % len(self.block)
            if self.count > 1000:
                return b""
            self.count += 1
            return part[:size]

        count = 0

    tracemalloc.start()
    with pytest.raises(NoImage):
        list(Reader(Endless(), "it", Work()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_size_of_a_link() -> None:
    """A link that claims a size has no contents."""
    data = header(type=tarfile.SYMTYPE, linkname="y", size=4096) + packed(info("next"))
    assert [member.path for member in read(data)] == ["/x", "/next"]


@given(st.binary(max_size=3000))
def test_fuzzed_bytes(data: bytes) -> None:
    """Any bytes are read as a tar or refused in printable words."""
    try:
        read(data)
    except NoImage as exc:
        assert str(exc).isprintable()


@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    """A tar with changed bytes is read or refused in printable words."""
    whole = bytearray(packed(info("a" * 150, uid=1 << 31), info("b", type=tarfile.SYMTYPE, linkname="c" * 200)))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)):
        whole[at] = data.draw(st.integers(0, 255))
    try:
        read(bytes(whole))
    except NoImage as exc:
        assert str(exc).isprintable()


def test_slice() -> None:
    """A slice reads from its start to its end and no further, and again from its start."""
    part = Slice(io.BytesIO(b"0123456789"), 2, 5)
    assert (part.read(3), part.at) == (b"234", 5)
    assert part.read() == b"56"
    assert part.read(1) == b""
    assert part.again().read() == b"23456"
    assert part.again().skip(5)
    assert not part.again().skip(6)
