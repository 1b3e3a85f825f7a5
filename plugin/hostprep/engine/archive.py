"""An image in a file, as `docker save` writes it, in Docker's own layout or in OCI's. No engine is needed.

Nothing is unpacked. Each layer is read once, however often it is listed, to learn who owns which path, and again for
the few small files that are asked for.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import Invalid, NoImage, printable
from ..options import Mode, parse_image
from .image import FILE_LIMIT, Config, ImageEntry, json_object
from .tar import File, Member, Reader, Slice, Stream, Work, absolute, pass_over, read_whole

_MAX_JSON: Final = 4 << 20  # bytes of a manifest or a configuration
_MAX_FILES: Final = 100_000  # in the archive itself
_MAX_ENTRIES: Final = 1_000_000  # in all layers together: at most 0.5 GB of memory, usually some MB
_MAX_LAYERS: Final = 512
_MAX_HOPS: Final = 8  # from one file of the archive to another
_MAGIC: Final = 6  # bytes that tell how a layer is compressed
_CHUNK: Final = 1 << 16
# Whoever hands in a larger archive may have more unpacked: nine times over, at a ratio of ten to one.
_UNPACKED: Final = 4 << 30
_UNPACKED_A_BYTE: Final = 100
_GZIP: Final = b"\x1f\x8b"
_UNREADABLE: Final = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_WHITEOUT: Final = ".wh."  # as in the OCI image specification, layer.md
_OPAQUE: Final = ".wh..wh..opq"
# What `docker save` calls an architecture, where the kernel calls it otherwise.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@contextmanager
def open_archive(path: str, wanted: str | None) -> Iterator[tuple[str, Config, Layers]]:
    """Open the archive at *path*: name, configuration and files of its only image, or of the one that is *wanted*.

    Raises:
        NoImage: the file is not an image archive, or a damaged one.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        work = Work(_UNPACKED + _UNPACKED_A_BYTE * size)
        packed = Slice(file, 0, size)
        contents: File = file
        if packed.read(len(_GZIP)) == _GZIP:
            contents, size = _Unpacked(packed, work), 1 << 62  # its length is known only at its end
        try:
            yield _Archive(contents, size, os.path.basename(path), work).image(wanted)
        except (EOFError, zlib.error) as exc:
            raise NoImage(f"{printable(path)} cannot be read: {exc}") from None


class _Gunzip(io.RawIOBase):
    """What a gzip stream unpacks to. gzip.GzipFile does not tell of how many pieces it is, and they may be empty."""

    def __init__(self, packed: Stream, work: Work) -> None:
        self._packed = packed
        self._work = work
        self._data = b""
        self._piece: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            self._data = self._data or self._packed.read(_CHUNK)
            if not self._data and self._piece is not None:
                raise EOFError("it ends early")
            if not self._data:
                return 0
            if self._piece is None:
                self._data = self._data.lstrip(b"\0")  # between pieces, as gzip(1) does
                if not self._data:
                    continue
                self._work.header()
                self._piece = zlib.decompressobj(wbits=31)
            found = self._piece.decompress(self._data, len(buffer))
            self._data = self._piece.unconsumed_tail or self._piece.unused_data
            if self._piece.eof:
                self._piece = None
            self._work.unpack(len(found))
            if found:
                buffer[: len(found)] = found
                return len(found)


class _Unpacked:
    """A compressed file that can be read at any position. To go back, it is unpacked from its beginning."""

    def __init__(self, packed: Slice, work: Work) -> None:
        self._open: Callable[[], io.BufferedReader] = lambda: io.BufferedReader(_Gunzip(packed.again(), work), _CHUNK)
        self._stream = self._open()
        self._at = 0

    def seek(self, position: int, /) -> int:
        if position < self._at:
            self._stream, self._at = self._open(), 0
        pass_over(self._stream, position - self._at)
        self._at = position
        return position

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        return data


@dataclass(frozen=True, slots=True)
class _File:
    start: int
    size: int
    beginning: bytes
    link: str


class _Archive:
    """The files of the archive itself: manifests, configurations, layers."""

    def __init__(self, file: File, size: int, name: str, work: Work) -> None:
        self._contents = file
        self._name = printable(name)
        self._work = work
        self._files: dict[str, _File] = {}
        reader = Reader(Slice(file, 0, size), self._name, work)
        for number, member in enumerate(reader):
            if member.kind in ("file", "symlink", "hard link"):
                link = member.link
                if member.kind == "symlink":  # docker save's way to have one layer in two images
                    link = absolute(f"{os.path.dirname(member.path)}/{link}")
                self._files[member.path] = _File(member.start, member.size, reader.beginning(_MAGIC), link)
            if number >= _MAX_FILES:
                raise self._bad("it holds too many files")

    def image(self, wanted: str | None) -> tuple[str, Config, Layers]:
        if "/manifest.json" in self._files:
            name, config, layers = self._docker(wanted)
        elif "/index.json" in self._files:
            name, config, layers = self._oci(wanted)
        else:
            raise self._bad("it has neither Docker's manifest.json nor OCI's index.json")
        if len(layers) > _MAX_LAYERS:
            raise self._bad(f"the image has {len(layers)} layers")
        text = self._text(config)
        image_id = f"sha256:{hashlib.sha256(text).hexdigest()}"
        parsed = Config.parse(self._parsed(text, config), image_id=image_id)
        try:
            name = parse_image(name)
        except Invalid:
            name = image_id  # an engine that has loaded it knows it by that, too
        return name, parsed, Layers(self._contents, [self._file(layer) for layer in layers], self._work)

    def _docker(self, wanted: str | None) -> tuple[str, str, list[str]]:
        found = _list(self._json("/manifest.json"))
        images = [(_texts(_object(each).get("RepoTags") or []), _object(each)) for each in found]
        chosen = [each for each in images if wanted is None or _named(wanted) in map(_named, each[0])]
        names, manifest = self._only(chosen, [name for each in images for name in each[0]], wanted)
        config, layers = manifest.get("Config"), _texts(manifest.get("Layers"))
        if not isinstance(config, str):
            raise self._bad("its manifest.json names no configuration")
        return wanted or (names[0] if names else ""), absolute(config), [absolute(layer) for layer in layers]

    def _oci(self, wanted: str | None) -> tuple[str, str, list[str]]:
        found = [
            (_name_of(each), each) for each in map(_object, _list(_object(self._json("/index.json")).get("manifests")))
        ]
        chosen = [each for each in found if wanted is None or _named(wanted) == _named(each[0])]
        if wanted is not None and not chosen and len(found) == 1 and not found[0][0]:
            chosen = found
        name, manifest = self._only(chosen, [each[0] for each in found if each[0]], wanted)
        described = _object(self._json(self._blob(manifest)))
        for _ in range(_MAX_HOPS):
            if "manifests" not in described:
                break
            described = _object(self._json(self._blob(self._platform(described))))
        layers = [self._blob(_object(layer)) for layer in _list(described.get("layers"))]
        return wanted or name, self._blob(_object(described.get("config"))), layers

    def _platform(self, index: dict[str, Any]) -> dict[str, Any]:
        """The manifest for this machine, or else for any Linux, of an image for several machines."""
        machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
        found = [_object(each) for each in _list(index.get("manifests"))]
        there = [each for each in found if self._blob(each) in self._files]
        linux = [each for each in there if _object(each.get("platform") or {"os": "linux"}).get("os") == "linux"]
        own = [each for each in linux if (each.get("platform") or {}).get("architecture") == machine]
        if not (own or linux):
            raise self._bad("it has no image for Linux")
        return (own or linux)[0]

    def _only(self, chosen: list[Any], names: list[str], wanted: str | None) -> Any:
        if len(chosen) == 1:
            return chosen[0]
        known = ", ".join(printable(name[:200]) for name in names[:20]) or "none by name"
        if wanted is not None:
            raise NoImage(f"{self._name} has no image {printable(wanted)}", hint=f"it has {known}")
        raise NoImage(f"{self._name} has {len(chosen)} images", hint=f"say which one: {known}")

    def _blob(self, described: dict[str, Any]) -> str:
        digest = described.get("digest")
        if not isinstance(digest, str):
            raise self._bad("a digest is missing")
        return absolute("blobs/" + digest.replace(":", "/", 1))

    def _file(self, path: str) -> _File:
        for _ in range(_MAX_HOPS):
            if (found := self._files.get(path)) is None:
                break
            if not found.link:
                return found
            path = found.link
        raise self._bad(f"{printable(path[:200])} is not in it")

    def _json(self, path: str) -> Any:
        return self._parsed(self._text(path), path)

    def _parsed(self, text: bytes, path: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self._bad(f"{printable(path[:200])} is not JSON") from None

    def _text(self, path: str) -> bytes:
        found = self._file(path)
        data = read_whole(Slice(self._contents, found.start, found.size), _MAX_JSON + 1)
        if len(data) > _MAX_JSON:
            raise self._bad(f"{printable(path[:200])} is too long")
        return data

    def _bad(self, why: str) -> NoImage:
        return NoImage(f"{self._name} is not an image archive: {why}", hint="docker save IMAGE -o FILE makes one")


def _object(found: Any) -> dict[str, Any]:
    return json_object(found, "the archive is damaged: something in its JSON")


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise NoImage("the archive is damaged: something in its JSON is not an array")
    return found


def _texts(found: Any) -> list[str]:
    if not all(isinstance(each, str) for each in _list(found)):
        raise NoImage("the archive is damaged: something in its JSON is not a string")
    return list(found)


def _name_of(manifest: dict[str, Any]) -> str:
    notes = _object(manifest.get("annotations") or {})
    name = notes.get("io.containerd.image.name") or notes.get("org.opencontainers.image.ref.name") or ""
    return name if isinstance(name, str) else ""


def _named(name: str) -> str:
    """*name* in one spelling: `mongo` and docker.io/library/mongo:latest are the same image."""
    last = name.rpartition("/")[2]
    name = name if ":" in last or "@" in last else f"{name}:latest"
    return name.removeprefix("docker.io/").removeprefix("library/")


# -- layers --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A path of the image, and what is below it. *member* is None for a directory that no layer describes.

    A hard link has the member and the layer of the file's first name.
    """

    member: Member | None = None
    layer: _File | None = None
    below: dict[str, _Node] = field(default_factory=dict)


class Layers:
    """The files of an image, its layers applied one after the other: a Tree (image.py)."""

    def __init__(self, contents: File, layers: list[_File], work: Work) -> None:
        self._contents = contents
        self._layers = layers
        self._work = work
        self._root = _Node()
        self._left = _MAX_ENTRIES
        # In their order in the archive: to go back in a compressed one takes long.
        members: dict[_File, list[Member]] = {}
        for layer in sorted({*layers}, key=lambda layer: layer.start):
            members[layer] = []
            for member in Reader(self._stream(layer), self._name(layer), work):
                self._count(1)
                members[layer].append(member)
        for number, layer in enumerate(layers):
            if layer in layers[:number]:
                self._count(len(members[layer]))
            self._apply(layer, members[layer])

    def _count(self, entries: int) -> None:
        self._left -= entries
        if self._left < 0:
            raise NoImage(f"the image has more than {_MAX_ENTRIES} files and directories")

    def _apply(self, layer: _File, members: list[Member]) -> None:
        """Apply a layer to those before it.

        Its whiteouts hide what earlier layers have, wherever in the tar they stand.
        """
        added: list[Member] = []
        for member in members:
            directory, name = os.path.split(member.path)
            if name == _OPAQUE:
                if (node := self._node(directory)) is not None:
                    node.below.clear()
            elif name.startswith(_WHITEOUT):
                if (node := self._node(directory)) is not None:
                    node.below.pop(name.removeprefix(_WHITEOUT), None)
            else:
                added.append(member)
        for member in added:
            node = self._root
            for name in _components(member.path):
                if name not in node.below:
                    self._count(1)  # one member may name thousands of directories
                    node.below[name] = _Node()
                node = node.below[name]
                if node.member is not None and node.member.kind != "directory":
                    # A directory replaces a file or a link, even where the layer names only what is in the directory.
                    node.member = None
            if member.kind == "hard link":
                other = self._node(member.link)
                if other is not None and other.member is not None and other.member.kind != "directory":
                    node.member, node.layer = other.member, other.layer
                continue
            if member.kind != "directory":
                node.below.clear()
            node.member, node.layer = member, layer

    def _name(self, layer: _File) -> str:
        return f"layer {self._layers.index(layer) + 1} of the image"

    def _stream(self, layer: _File) -> Stream:
        packed = Slice(self._contents, layer.start, layer.size)
        if layer.beginning.startswith(_GZIP):
            return _Unpacked(packed, self._work)
        for magic, kind in _UNREADABLE.items():
            if layer.beginning.startswith(magic):
                what = f"{self._name(layer)} is compressed with {kind}, which hostprep cannot read"
                raise NoImage(what, hint="load it into an engine and probe it there")
        return packed

    def _node(self, path: str) -> _Node | None:
        node: _Node | None = self._root
        for name in _components(path):
            if node is None:
                break
            node = node.below.get(name)
        return node

    def link(self, path: str) -> str | None:
        node = self._node(path)
        return node.member.link if node and node.member and node.member.kind == "symlink" else None

    def entry(self, path: str) -> ImageEntry | None:
        node = self._node(path)
        if node is None:
            return None
        if node.member is None:
            # No layer says who owns it. An engine makes it as root.
            return ImageEntry("directory", Mode(0o755), 0, 0, bool(node.below))
        member = node.member
        return ImageEntry(member.kind, Mode(member.mode), member.uid, member.gid, bool(node.below))

    def read(self, path: str) -> bytes | None:
        node = self._node(path)
        if node is None or node.member is None or node.layer is None or node.member.kind != "file":
            return None
        if node.member.size > FILE_LIMIT:
            raise NoImage(f"{printable(path[:200])} of the image has more than {FILE_LIMIT} bytes")
        stream = self._stream(node.layer)
        pass_over(stream, node.member.start)
        return read_whole(stream, node.member.size)


def _components(path: str) -> list[str]:
    return [name for name in path.split("/") if name]
