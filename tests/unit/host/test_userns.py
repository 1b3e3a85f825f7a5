"""The maps of user namespaces, and how engines find theirs in /etc/subuid and /etc/subgid."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hostprep.errors import Invalid
from hostprep.host.userns import HOST, Remap, named, setting
from hostprep.options import MAX_ID

LAB = "0:231072:1000,1000:400000:64536"


def test_both_ways() -> None:
    """Numbers go both ways, and those without another have none."""
    remap = Remap(((0, 100000, 1000), (5000, 7, 1)), ((0, 200000, 1000),))
    assert (remap.uid(184), remap.uid(5000), remap.uid(1000), remap.gid(998)) == (100184, 7, None, 200998)
    assert remap.inside(100184, 200998) == (184, 998)
    assert remap.inside(184, 998) is None
    assert (remap.seen(100184, 998), remap.seen(8, 200000)) == ((184, 65534), (65534, 0))
    assert remap.covers(7, 200000)
    assert not remap.covers(8, 200000)


def test_the_hosts_own() -> None:
    """Without a map every id that there is stands for itself."""
    assert [HOST.uid(each) for each in (0, 184, MAX_ID, MAX_ID + 1)] == [0, 184, MAX_ID, None]


def test_written() -> None:
    """What is written is read back as the same map."""
    remap = Remap.parse(LAB, "0:300000:65536")
    assert (remap.uid(999), remap.uid(1000), remap.uid(65535), remap.uid(65536)) == (232071, 400000, 464535, None)
    assert Remap.parse(*remap.shown.values()) == remap
    assert str(remap) == f"{LAB} (groups 0:300000:65536)"


@pytest.mark.parametrize(
    "text",
    [
        *("", "100000:65536", "0:100000", "0:100000:65536,", "a:b:c", "0:-1:5", "0:100000:0", "٠:100000:65536"),
        *("1:100000:65536", "0:100000:10,11:200000:10", "0:100000:10,9:200000:10"),
        *("0:100000:65536,65536:100001:5", "0:4294967290:6", ",".join(f"{n}:{n * 2}:1" for n in range(341))),
    ],
)
def test_no_map(text: str) -> None:
    """What is no map, begins with another id than 0, has a gap, or is one that the kernel refuses, is refused."""
    with pytest.raises(ValueError, match=r"no map|no such ranges"):
        Remap.parse(text, text)
    with pytest.raises(ValueError, match="auto, host"):
        setting(text)


@pytest.mark.parametrize("text", ["auto", "host", "dockremap", "1500", LAB])
def test_setting(text: str) -> None:
    """The setting takes what the option does, and a map."""
    assert setting(text) == text


def files(subuid: str, subgid: str | None = None) -> Callable[[str], bytes]:
    found = {
        "/etc/subuid": subuid,
        "/etc/subgid": subuid if subgid is None else subgid,
        "/etc/passwd": "root:x:0:0\nlab:x:1500:1500\ndockremap:x:1600:1600\n",
    }
    return lambda path: found[path].encode()


@pytest.mark.parametrize("user", ["lab", "1500", "lab:others"])
@pytest.mark.parametrize("listed", ["lab", "1500"])
def test_ranges(user: str, listed: str) -> None:
    """A user's ranges count in the order of the file, by name or number, whichever the engine was told."""
    text = f"# ranges\nlaboratory:1:5\n{listed}:400000:1000\n\nother:5:5\n{listed}:231072:64536\nbroken\n"
    found = named(user, files(text, f"{listed}:300000:65536\n"))
    assert found == Remap(((0, 400000, 1000), (1000, 231072, 64536)), ((0, 300000, 65536),))


def test_default() -> None:
    """`default` is dockremap, whose ranges the engine makes by itself."""
    assert named("default", files("dockremap:100000:65536\n")) == Remap.parse("0:100000:65536", "0:100000:65536")


def test_root() -> None:
    """root cannot be mapped: the engine leaves it."""
    assert named("root", files("root:100000:65536\n")) == named("0", files("")) == HOST


@pytest.mark.parametrize(
    ("subuid", "subgid", "why"),
    [
        ("other:5:5\n", None, "/etc/subuid has no ranges"),
        ("lab:100000:65536\n", "", "/etc/subgid has no ranges"),
        ("lab:100000:65536\n1500:300000:65536\n", None, "for its number"),
        ("lab:100000:65536\nlab:100001:5\n", None, "no such ranges"),
        ("lab:100000:0\n", None, "no such ranges"),
    ],
)
def test_it_cannot_be_told(subuid: str, subgid: str | None, why: str) -> None:
    """A user without ranges, with such as engines read differently, or as no kernel takes, is refused in words."""
    with pytest.raises(Invalid, match=why):
        named("lab", files(subuid, subgid))
