"""Image archives, Docker's and OCI's: what they contain, and that a hostile one does no harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.engine import archive
from hostprep.engine import tar as tar_module
from hostprep.engine.archive import open_archive
from hostprep.engine.image import ImageEntry, probe_image
from hostprep.engine.tar import Slice, Work
from hostprep.errors import NoImage
from hostprep.options import Mode
from tests.support.archives import BASE, CONFIG, USERS, docker_save, oci, tar


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        (tmp_path / "image.tar").write_bytes(data)
        return str(tmp_path / "image.tar")

    return write


Write = Callable[[bytes], str]


def entries(path: str, *asked: str, wanted: str | None = None) -> list[ImageEntry | None]:
    with open_archive(path, wanted) as (_, _, layers):
        return [layers.entry(each) for each in asked]


@pytest.mark.parametrize("layer", [BASE, gzip.compress(BASE)], ids=["plain", "gzip"])
@pytest.mark.parametrize("make", [docker_save, oci], ids=["docker", "oci"])
@pytest.mark.parametrize("whole", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_formats(written: Write, layer: bytes, make: Any, whole: Any) -> None:
    """Docker's layout and OCI's, plain and compressed, give the same result."""
    with open_archive(written(whole(make(layer))), None) as (name, config, layers):
        found = probe_image(name, config, layers, config.volumes)
    assert (found.user.uid, found.user.gid) == (5, 6)
    assert found.directories[0].entry == ImageEntry("directory", Mode(0o750), 5, 6, filled=True)
    assert found.config.id == "sha256:" + hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()


def test_image_for_several_machines(written: Write) -> None:
    """Of an index within OCI's index the manifest for Linux that is there counts; attestations do not."""
    assert entries(written(oci(BASE, nested=True)), "/data")[0] is not None


@pytest.mark.parametrize(
    ("layer", "asked", "expected"),
    [
        (tar(("data", None, 7, 8, 0o700)), "/data", (7, 8, True)),
        (tar(("data/.wh.seed", b"")), "/data", (5, 6, False)),
        (tar(("data", None, 7, 8), ("data/.wh..wh..opq", b"")), "/data", (7, 8, False)),
        (tar(("data/new", b""), ("data/.wh..wh..opq", b"")), "/data", (5, 6, True)),
        (tar((".wh.data", b"")), "/data", None),
        (tar((".wh.data", b"")), "/data/seed", None),
        (tar((".wh.data", b""), ("data", None, 7, 8)), "/data", (7, 8, False)),
        (tar(("data", None, 7, 8), (".wh.data", b"")), "/data", (7, 8, False)),
        (tar(("data", b"now a file", 7, 8)), "/data/seed", None),
        (tar(("old/deep/er", None, 7, 8)), "/old/deep", (0, 0, True)),
        (tar((".wh.none", b""), ("none/.wh.none", b""), ("none/.wh..wh..opq", b"")), "/data", (5, 6, True)),
        (tar((".wh.", b""), (".wh..", b""), (".wh.../.wh.x", b"")), "/data", (5, 6, True)),
        (tar(("data/hard", "= data/seed")), "/data/hard", None),
        (tar(("x", b"", 9, 9), ("data/hard", "= x")), "/data/hard", (9, 9, False)),
    ],
)
def test_layers(written: Write, layer: bytes, asked: str, expected: tuple[int, int, bool] | None) -> None:
    """A layer changes the earlier ones; its whiteouts hide what those have, wherever in the layer they stand."""
    (found,) = entries(written(docker_save(BASE, layer)), asked)
    if asked == "/data/hard" and expected is None:
        expected = (5, 6, False)  # the other name lies in a layer below
    assert (found and (found.uid, found.gid, found.filled)) == expected


def test_link_replaced_by_a_directory(written: Write) -> None:
    """A directory replaces a link of an earlier layer, and a link a directory with its contents."""
    lower, upper = tar(("a", "-> /b"), ("c", None), ("c/x", None)), tar(("a/y", None), ("c", "-> /d"))
    with open_archive(written(docker_save(lower, upper)), None) as (_, _, layers):
        assert (layers.link("/a"), layers.link("/c")) == (None, "/d")
        assert layers.entry("/a/y") is not None
        assert layers.entry("/c/x") is None


def test_passwd_of_the_last_layer(written: Write) -> None:
    """A file has the contents of the last layer that has it, also through a hard link."""
    newer = tar((USERS, b"app:x:7:8:::\n"))
    linked = tar(("srv", None), ("srv/users", b"app:x:9:9:::\n"), (USERS, "= srv/users"))
    for layers, uid in (((BASE, newer), 7), ((BASE, newer, linked), 9), ((BASE, newer, tar((".wh.etc", b""))), None)):
        with open_archive(written(docker_save(*layers)), None) as (_, _, found):
            text = found.read("/etc/passwd")
            assert text == (f"app:x:{uid}:".encode() + (text or b"")[8:] if uid else None)


def test_shared_layer(written: Write) -> None:
    """Where docker save links a shared layer, the link is followed within the archive."""
    data = tar(
        ("one/layer.tar", BASE),
        ("two/layer.tar", "-> ../one/layer.tar"),
        ("config.json", json.dumps(CONFIG).encode()),
        ("manifest.json", json.dumps([{"Config": "config.json", "Layers": ["two/layer.tar"]}]).encode()),
    )
    assert entries(written(data), "/data")[0] is not None


class TestSeveralImages:
    def two(self) -> bytes:
        manifest = [
            {"Config": "config.json", "RepoTags": [f"{name}:7"], "Layers": ["layer.tar"]} for name in ("mongo", "redis")
        ]
        config = json.dumps(CONFIG).encode()
        return tar(("layer.tar", BASE), ("config.json", config), ("manifest.json", json.dumps(manifest).encode()))

    @pytest.mark.parametrize("wanted", ["redis:7", "docker.io/library/redis:7", "library/redis:7"])
    def test_chosen_by_name(self, written: Write, wanted: str) -> None:
        """An image is found by its short name and by its full one."""
        with open_archive(written(self.two()), wanted) as (name, _, _):
            assert name == wanted

    @pytest.mark.parametrize("wanted", [None, "redis", "other:7"])
    def test_ambiguous(self, written: Write, wanted: str | None) -> None:
        """Where the choice is not clear, the error names the images of the archive."""
        with pytest.raises(NoImage, match="mongo:7, redis:7"), open_archive(written(self.two()), wanted):
            pass

    def test_single_image(self, written: Write) -> None:
        """A single image has its own name; its id where that is missing or malformed."""
        for name, shown in (("mongo:7", "mongo:7"), (None, "sha256:"), ("a\x1b[31m b", "sha256:")):
            with open_archive(written(docker_save(BASE, name=name)), None) as (found, _, _):
                assert found.startswith(shown)

    def test_name_in_an_annotation(self, written: Write) -> None:
        """An OCI layout names its images in annotations."""
        with open_archive(written(oci(BASE, name="docker.io/library/mongo:7")), "mongo:7") as (name, _, _):
            assert name == "mongo:7"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "neither"),
        (b"no tar at all" * 100, "not a tar"),
        (b"\x1f\x8bno gzip", "cannot be read"),
        (gzip.compress(docker_save(BASE))[:-200], "cannot be read"),
        (docker_save(BASE)[:6000], "ends"),
        (tar(("readme", b"")), "neither"),
        (tar(("manifest.json", b"[[[")), "not JSON"),
        (tar(("manifest.json", b"[" * 100000)), "not JSON"),
        (tar(("manifest.json", b" " * (5 << 20))), "too long"),
        (tar(("manifest.json", b"[]")), "0 images"),
        (tar(("manifest.json", b"{}")), "array"),
        (tar(("manifest.json", b"[5]")), "object"),
        (tar(("manifest.json", b'[{"RepoTags": [5]}]')), "string"),
        (tar(("manifest.json", b'[{"Layers": []}]')), "no configuration"),
        (tar(("manifest.json", b'[{"Config": "../../etc/passwd", "Layers": []}]')), "/etc/passwd is not in it"),
        (tar(("index.json", b"{}")), "array"),
        (tar(("index.json", b'{"manifests": [{}]}')), "digest"),
        (tar(("index.json", b'{"manifests": [{"digest": "../../../etc/passwd"}]}')), "not in it"),
        (tar(("manifest.json", "-> manifest.json")), "not in it"),
        (tar(("manifest.json", "-> /etc/hostname")), "not in it"),
        (docker_save(BASE, Layers=["gone.tar"]), "gone.tar"),
        (docker_save(BASE, Layers=["0/layer.tar"] * 600), "600 layers"),
        (docker_save(b"\x28\xb5\x2f\xfd" + b"x" * 600), "zstd"),
        (docker_save(b"\xfd7zXZ\0" + b"x" * 600), "xz"),
        (docker_save(gzip.compress(BASE)[:100]), "cannot be read"),
        (docker_save(b"x" * 1024), "layer 1"),
        (docker_save(BASE, config={"os": "windows"}), "windows"),
        (docker_save(BASE, config=[]), "object"),
        (oci(BASE, config={"config": 5}), "object"),
    ],
    ids=range(29),
)
def test_hostile(written: Write, data: bytes, word: str) -> None:
    """A file that is not an image archive, or a damaged one, is refused in one printable line."""
    with pytest.raises(NoImage, match=word) as caught, open_archive(written(data), None):
        pass
    assert str(caught.value).isprintable()


def test_endless_directories(written: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose few members name very many directories is refused before they fill the memory."""
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 10_000)
    layer = tar(*(("/".join([str(number)] * 400), None) for number in range(100)))
    tracemalloc.start()
    with pytest.raises(NoImage, match="more than 10000"), open_archive(written(docker_save(layer)), None):
        pass
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_a_large_file_is_passed_over(written: Write) -> None:
    """A layer that unpacks to many megabytes is read in little memory."""
    layer = gzip.compress(tar(("large", bytes(64 << 20)), ("data", None, 5, 6)))
    path = written(docker_save(layer))
    tracemalloc.start()
    (found,) = entries(path, "/data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert peak < 8 << 20


def test_large_passwd(written: Write) -> None:
    """A passwd over the limit is refused."""
    path = written(docker_save(tar((USERS, bytes(2 << 20)))))
    with open_archive(path, None) as (_, _, layers), pytest.raises(NoImage, match="more than"):
        layers.read("/etc/passwd")


def test_no_such_file(tmp_path: Path) -> None:
    """A missing file is an OSError with its name."""
    with pytest.raises(FileNotFoundError), open_archive(str(tmp_path / "none.tar"), None):
        pass


# -- what an archive may cost --------------------------------------------------------------------------------------


class Counted(Work):
    """What was done until the end, even if that was an error."""

    last: ClassVar[Work]

    def __init__(self, unpacked: int) -> None:
        super().__init__(unpacked)
        Counted.last = self


def cost(path: str) -> Work:
    """What a probe of the archive takes."""
    with open_archive(path, None) as (name, config, layers):
        probe_image(name, config, layers, config.volumes)
    return Counted.last


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "Work", Counted)


@pytest.mark.usefixtures("counted")
def test_a_layer_listed_again_and_again(written: Write) -> None:
    """A layer is unpacked once, and its headers are read once, however often the image has it."""
    zeros = gzip.compress(tar(("zeros", bytes(8 << 20))))
    once = cost(written(docker_save(BASE, zeros)))
    often = cost(written(docker_save(BASE, zeros, Layers=["0/layer.tar", *["1/layer.tar"] * 511])))
    assert (often.unpacked, often.headers) == (once.unpacked, once.headers)
    assert once.unpacked < 9 << 20


@pytest.mark.usefixtures("counted")
def test_a_compressed_archive_with_its_layers_in_another_order(written: Write) -> None:
    """An archive that is compressed as a whole is not unpacked anew for each layer."""
    layers = [tar((str(number), hashlib.shake_256(bytes([number])).digest(1 << 16))) for number in range(40)]
    order = ["40/layer.tar", *(f"{number}/layer.tar" for number in range(40))]
    data = docker_save(*reversed(layers), BASE, Layers=order)
    assert cost(written(gzip.compress(data, 1))).unpacked < 10 * len(data)


BOMB = gzip.compress(tar(("zeros", bytes(16 << 20))))
GLOBAL = tarfile.TarInfo("x")
GLOBAL.type = tarfile.XGLTYPE
PAX = tarfile.TarInfo("x")
PAX.type, PAX.size = tarfile.XHDTYPE, 60_000
MANY = tar(*((f"{number}", b"") for number in range(300)))
LONG = tar(*((f"{'x/' * 1000}{number}", b"") for number in range(150)))
NAMES = "zeros layers twice outer pieces pieces-twice globals records outer-globals entries repeated paths outer-paths"


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (docker_save(BASE, BOMB), "bytes when it is unpacked"),
        (docker_save(BASE, *[gzip.compress(tar((str(n), bytes(1 << 18)))) for n in range(40)]), "when it is unpacked"),
        (gzip.compress(docker_save(BASE, BOMB)), "bytes when it is unpacked"),
        (gzip.compress(docker_save(BASE, bytes(16 << 20))), "bytes when it is unpacked"),
        (docker_save(BASE, gzip.compress(b"") * 2000), "1000 headers"),
        (gzip.compress(docker_save(BASE, gzip.compress(b"") * 2000)), "1000 headers"),
        (docker_save(BASE, GLOBAL.tobuf(tarfile.GNU_FORMAT) * 2000), "1000 headers"),
        (docker_save(BASE, PAX.tobuf(tarfile.GNU_FORMAT) + b"6 a=b\n" * 10_000 + bytes(416)), "1000 headers"),
        (gzip.compress(GLOBAL.tobuf(tarfile.GNU_FORMAT) * 2000), "1000 headers"),
        (docker_save(*[MANY] * 4), "1000 headers"),
        (docker_save(MANY, Layers=["0/layer.tar"] * 40), "more than 5000 files"),
        (docker_save(LONG), "bytes of paths"),
        (LONG, "bytes of paths"),
    ],
    ids=NAMES.split(),
)
def test_more_than_hostprep_looks_at(written: Write, monkeypatch: pytest.MonkeyPatch, data: bytes, words: str) -> None:
    """What stands for more work than hostprep does ends at the limit of all of it together, in words."""
    monkeypatch.setattr(archive, "_UNPACKED", 4 << 20)
    monkeypatch.setattr(archive, "_UNPACKED_A_BYTE", 1)
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 5000)
    monkeypatch.setattr(tar_module, "_MAX_HEADERS", 1000)
    monkeypatch.setattr(tar_module, "_MAX_TEXT", 200_000)
    with pytest.raises(NoImage, match=words) as caught:
        cost(written(data))
    assert str(caught.value).isprintable()
    assert Counted.last.unpacked <= (4 << 20) + len(data) + (1 << 16)
    assert Counted.last.headers <= 1001
    assert Counted.last.text < 210_000


ASKED = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 99)))


@given(st.lists(st.binary(max_size=200)), st.integers(0, 9), ASKED)
def test_any_position_of_what_is_compressed(pieces: list[bytes], padding: int, asked: list[tuple[int, int]]) -> None:
    """A gzip file of any pieces reads as gzip unpacks it, from any position and in any order."""
    packed = b"".join(gzip.compress(piece) + bytes(padding) for piece in pieces)
    whole, unpacked = gzip.decompress(packed), archive._Unpacked(Slice(io.BytesIO(packed), 0, len(packed)), Work())
    for position, size in asked:
        unpacked.seek(position)
        assert unpacked.read(size) == whole[position : position + size]
