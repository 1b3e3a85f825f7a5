"""The user of an image, where its paths lead, and the owner that a volume needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.engine.image import FILE_LIMIT, Config, ImageEntry, exec_user, follow_links, owner_options, probe_image
from hostprep.errors import NoImage
from hostprep.options import Mode

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
mongodb:x:184:998:mongodb:/:/bin/sh
mongodb:x:185:999:a second one:/:/bin/sh
1000:x:7:7:a number for a name:/:/bin/sh
short:x:5
odd:x:five:six::/:
  spaced:x:6:6:::\r
high:x:3000000000:1:::
"""
GROUP = b"""\
root:x:0:
mongodb:x:998:
media:x:44:mongodb,root
video:x:45:mongodb
video:x:46:mongodb
"""


class Files:
    """A tree of links, directories and files, by path."""

    def __init__(self, found: Mapping[str, ImageEntry | str | bytes]) -> None:
        self.found = found

    def link(self, path: str) -> str | None:
        found = self.found.get(path)
        return found if isinstance(found, str) else None

    def entry(self, path: str) -> ImageEntry | None:
        found = self.found.get(path)
        return found if isinstance(found, ImageEntry) else ImageEntry("file", Mode(0o644), 0, 0) if found else None

    def read(self, path: str) -> bytes | None:
        found = self.found.get(path)
        return found if isinstance(found, bytes) else None


def directory(uid: int, gid: int, mode: int = 0o755) -> ImageEntry:
    return ImageEntry("directory", Mode(mode), uid, gid)


def config(user: str = "", *volumes: str) -> Config:
    return Config("sha256:1", user, volumes, has_program=True)


class TestUser:
    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("", (0, 0, (44,))),
            ("root", (0, 0, (44,))),
            ("mongodb", (184, 998, (44, 45, 46))),
            ("184", (184, 998, (44, 45, 46))),
            ("0184", (184, 998, (44, 45, 46))),
            ("1000", (1000, 0, ())),
            ("7", (7, 7, ())),
            ("mongodb:video", (184, 45, ())),
            ("mongodb:0", (184, 0, ())),
            ("mongodb:4711", (184, 4711, ())),
            ("184:998", (184, 998, ())),
            ("5000:6000", (5000, 6000, ())),
            (":44", (0, 44, ())),
            ("mongodb:", (184, 998, (44, 45, 46))),
            ("short", (5, 0, ())),
            ("odd", (0, 0, ())),
            ("spaced", (6, 6, ())),
            ("2147483647", (2147483647, 0, ())),
        ],
    )
    def test_as_engines_resolve_it(self, spec: str, expected: tuple[int, int, tuple[int, ...]]) -> None:
        """A number is never a name, the first entry counts, and only a user without a group has further groups."""
        user = exec_user(spec, PASSWD, GROUP)
        assert (user.uid, user.gid, user.groups) == expected
        assert user.why

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("nobody", ["nobody", "/etc/passwd"]),
            ("mongodb:nogroup", ["nogroup", "/etc/group"]),
            ("2147483648", ["2147483648"]),
            ("-1", ["-1"]),
            ("0:-1", ["-1"]),
            ("high", ["3000000000"]),
            ("99999999999999999999", ["99999999999999999999"]),
            ("a\x1b[31m", ["a\\x1b[31m"]),
            ("١٨٤", ["/etc/passwd"]),
            (" 184", ["/etc/passwd"]),
            ("1_0", ["/etc/passwd"]),
        ],
    )
    def test_refused(self, spec: str, words: list[str]) -> None:
        """An unknown name and a number out of range are refused, in printable words."""
        with pytest.raises(NoImage) as caught:
            exec_user(spec, PASSWD, GROUP)
        assert all(word in str(caught.value) for word in words)
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize(("spec", "owner"), [("", (0, 0)), ("5", (5, 0)), ("5:6", (5, 6))])
    def test_without_the_files(self, spec: str, owner: tuple[int, int]) -> None:
        """Without passwd and group a number is itself, and no user means root."""
        user = exec_user(spec, None, None)
        assert (user.uid, user.gid) == owner

    @pytest.mark.parametrize("spec", ["app", "5:app"])
    def test_a_name_without_the_files(self, spec: str) -> None:
        """Without the files a name is refused, and the missing file is named."""
        with pytest.raises(NoImage, match="has no /etc/"):
            exec_user(spec, None, None)

    @given(st.text(max_size=30), st.binary(max_size=300), st.binary(max_size=300))
    def test_fuzzed_files(self, spec: str, passwd: bytes, group: bytes) -> None:
        """Whatever the files contain, the result is a user or a refusal in printable words."""
        try:
            user = exec_user(spec, passwd, group)
        except NoImage as exc:
            assert str(exc).isprintable()
        else:
            assert all(0 <= each < 2**31 for each in (user.uid, user.gid, *user.groups))
            assert user.why.isprintable()


class TestConfig:
    def test_parsed(self) -> None:
        """An engine's and an archive's spelling are read; volumes are normalized, and `/` is left out."""
        volumes: dict[str, Any] = {"/data/": {}, "/data": {}, "logs": {}, "/": {}, "/a/../b": {}}
        inner = {"User": "app", "Volumes": volumes, "Cmd": ["sh"]}
        for outer in ({"Os": "linux", "Config": inner}, {"os": "linux", "config": inner}):
            assert Config.parse(outer, image_id="x") == Config("x", "app", ("/b", "/data", "/logs"), has_program=True)

    def test_empty(self) -> None:
        """An empty configuration has no user, no volume and no program."""
        assert Config.parse({"config": None}, image_id="x") == Config("x", "", (), has_program=False)

    @pytest.mark.parametrize(
        "found",
        [
            [],
            None,
            {"os": "windows"},
            {"config": ["User"]},
            {"config": {"User": 5}},
            {"config": {"User": "a" * 2000}},
            {"config": {"Volumes": ["/data"]}},
            {"config": {"Volumes": {f"/{number}": {} for number in range(33)}}},
            {"config": {"Volumes": {"/" + "a" * 5000: {}}}},
            {"config": {"Volumes": {"/a\0b": {}}}},
            {"config": {"Volumes": {"/a\ud800": {}}}},
        ],
        ids=lambda found: ascii(found)[:40],
    )
    def test_malformed(self, found: Any) -> None:
        """A configuration of another shape or system, or over a limit, is refused."""
        with pytest.raises(NoImage):
            Config.parse(found, image_id="x")


class TestFollowLinks:
    @pytest.mark.parametrize(
        ("path", "real"),
        [
            ("/data", "/srv/data"),
            ("/data/sub", "/srv/data/sub"),
            ("/up", "/srv/data"),
            ("/far/x", "/etc/x"),
            ("/chain", "/srv/data"),
            ("/srv/back/srv/back", "/"),
            ("/dot", "/srv"),
            ("/srv/absolute/x", "/etc/x"),
            ("/none/at/all", "/none/at/all"),
            ("/srv/data", "/srv/data"),
        ],
    )
    def test_within_the_image(self, path: str, real: str) -> None:
        """Links are followed as if the image's top were the root: nothing leads above it."""
        links = {
            "/data": "srv/data",
            "/up": "../../../srv/data",
            "/far": "/../../etc",
            "/chain": "/data",
            "/srv/back": "..",
            "/dot": "./srv/.",
            "/srv/absolute": "/etc",
        }
        assert follow_links(Files(links), path)[0] == real

    def test_followed(self) -> None:
        """The links that were followed are returned, in order."""
        assert follow_links(Files({"/a": "b", "/b": "/c"}), "/a/d") == ("/c/d", ("/a -> b", "/b -> /c"))

    @pytest.mark.parametrize(
        "links",
        [{"/a": "a"}, {"/a": "/b", "/b": "/a"}, {"/a": "x/" * 2000}, {"/a": "/".join(["a"] * 2000)}],
        ids=["itself", "two", "long", "long-and-itself"],
    )
    def test_too_many(self, links: dict[str, str]) -> None:
        """A path through a loop, or through too many links, is refused."""
        with pytest.raises(NoImage, match="too many symlinks"):
            follow_links(Files(links), "/a")


class TestProbeImage:
    FILES: Mapping[str, ImageEntry | str | bytes] = {"/etc/passwd": PASSWD, "/etc/group": GROUP}

    def at(self, spec: str, entry: ImageEntry | None, user: str | None = None) -> Any:
        files = {**self.FILES, **({"/data": entry} if entry else {})}
        (found,) = probe_image("mongo", config(spec), Files(files), ["/data"], user).directories
        return found

    @pytest.mark.parametrize(
        ("user", "entry", "owner", "switches"),
        [
            ("mongodb", directory(184, 998), (184, 998), False),
            ("mongodb", directory(184, 44), (184, 44), False),
            ("mongodb", directory(0, 0), (184, 998), False),
            ("mongodb", directory(5, 6), (184, 998), False),
            ("mongodb", None, (184, 998), False),
            ("", directory(184, 998), (184, 998), True),
            ("", directory(184, 0), (184, 0), True),
            ("", directory(0, 44), (0, 44), False),
            ("", directory(0, 0), (0, 0), False),
            ("", None, (0, 0), False),
        ],
    )
    def test_owner(self, user: str, entry: ImageEntry | None, owner: tuple[int, int], *, switches: bool) -> None:
        """The owner is the image's user; if that is root, the directory's owner. A user keeps the directory's group."""
        found = self.at(user, entry)
        assert ((found.uid, found.gid), found.switches_user) == (owner, switches)
        assert len(found.why) >= 2

    def test_owner_by_name(self) -> None:
        """The reason gives the owner's name in the image."""
        assert "184:998 (mongodb)" in self.at("", directory(184, 998)).why[1]

    def test_user_argument(self) -> None:
        """A given user replaces USER, and the reason says so."""
        found = self.at("mongodb", directory(0, 0), user="5:6")
        assert (found.uid, found.gid) == (5, 6)
        assert "--user 5:6" in found.why[0]

    def test_mode_that_denies_its_owner(self) -> None:
        """For a mode with which the owner cannot write, the reason gives the option that helps."""
        assert "mode=0755" in self.at("mongodb", directory(184, 998, 0o555)).why[-1]

    @pytest.mark.parametrize("kind", ["file", "other"])
    def test_not_a_directory(self, kind: str) -> None:
        """A path that is not a directory is refused."""
        with pytest.raises(NoImage, match=f"/data is a {kind}"):
            self.at("", ImageEntry(kind, Mode(0o644), 0, 0))

    def test_passwd_through_a_link(self) -> None:
        """passwd may be a link; it is followed within the image."""
        files: dict[str, ImageEntry | str | bytes] = {"/etc/passwd": "../../run/users", "/run/users": PASSWD}
        assert probe_image("mongo", config("mongodb"), Files(files), []).user.uid == 184


class TestOwnerOptions:
    def two(self, *owners: int) -> Any:
        files = {f"/{number}": directory(uid, uid) for number, uid in enumerate(owners)}
        return probe_image("mongo", config(""), Files(files), list(files))

    def test_one_directory(self) -> None:
        """One directory gives its owner as options."""
        assert owner_options(self.two(184)) == {"uid": "184", "gid": "184"}

    def test_same_owner(self) -> None:
        """Several directories of one owner give that owner."""
        assert owner_options(self.two(184, 184)) == {"uid": "184", "gid": "184"}

    def test_different_owners(self) -> None:
        """Directories of different owners are refused; the error names them, and `at`."""
        with pytest.raises(NoImage, match=r"/0 \(184:184\), /1 \(185:185\).*at=/0"):
            owner_options(self.two(184, 185))

    def test_no_directories(self) -> None:
        """Without a directory the image's user is the owner."""
        assert owner_options(probe_image("mongo", config("5:6"), Files({}), [])) == {"uid": "5", "gid": "6"}


def test_large_passwd() -> None:
    """A passwd of the largest size is read to its last line."""
    last = b"last:x:7:8\n"
    user = exec_user("last", b"a:x:6:6\n" * ((FILE_LIMIT - len(last)) // 8) + last, b"a:x:9:last\n" * 3)
    assert (user.uid, user.gid, user.groups) == (7, 8, (9, 9, 9))
