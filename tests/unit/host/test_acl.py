"""Access control lists: their format, what a mode makes of one, and what is said of it."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.doctor.permissions import Who, granted
from hostprep.errors import NotReady
from hostprep.host import acl
from hostprep.host.acl import ALL, ENTER, READ, WRITE, AccessList, Entry, Tag
from hostprep.host.fds import closing
from tests.support.host import mode, mounted
from tests.support.users import has_list, listed, set_list

NOBODY = 0xFFFFFFFF
WHO = [Who(5, 0), Who(6, 7), Who(6, 998), Who(6, 998, (7,)), Who(6, 6), Who(5, 998)]


def access(user: int = 7, group: int = 5, other: int = 0, mask: int | None = 7, **named: int) -> AccessList:
    """A list; *named* is u5=7, g7=5 and so on."""
    entries = [Entry(Tag.USER_OBJ, user), Entry(Tag.GROUP_OBJ, group), Entry(Tag.OTHER, other)]
    entries += [] if mask is None else [Entry(Tag.MASK, mask)]
    tags = {"u": Tag.USER, "g": Tag.GROUP}
    entries += [Entry(tags[who[0]], rights, int(who[1:])) for who, rights in named.items()]
    return AccessList(tuple(sorted(entries, key=lambda each: each.tag)))


def lists() -> Iterator[AccessList]:
    """Lists of many kinds: a mask that closes, entries that deny, more for a named user than for the group."""
    for group, mask, other in itertools.product((0, 5, 7), (0, 1, 5, 7), (0, 5)):
        for user, named in itertools.product((0, 5, 7), (0, 6)):
            yield access(7, group, other, mask, u5=user, g7=named)


BITS = [0o770, 0o750, 0o700, 0o705, 0o755, 0o707, 0o000, 0o775, 0o057]


def rights(of: AccessList, who: Who) -> int:
    """What *who* may do with a directory of 184:998 that has this list, as the kernel decides."""
    file = os.stat_result((0o040000 | of.bits, 0, 0, 0, 184, 998, 0, 0, 0, 0))
    return granted(who, file, of).rights


class TestFormat:
    @pytest.mark.root
    def test_what_setfacl_writes(self, tmp_path: Path) -> None:
        """What setfacl(1) writes is read as getfacl(1) shows it, and written back as it was."""
        tmp_path.chmod(0o750)
        set_list(tmp_path, "u:1005:rwx", "g:50:r-x", "m::r-x", "u:7:---")
        with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
            found = acl.read(fd)
        assert found is not None
        assert [(str(each), each.rights, found.effective(each)) for each in found.named] == [
            ("user 7", 0, 0),
            ("user 1005", 7, 5),
            ("group 50", 5, 5),
        ]
        assert (found.mask, found.group, found.bits) == (5, 5, 0o750)
        assert found.to_bytes() == os.getxattr(tmp_path, acl.ACCESS)

    @pytest.mark.root
    @pytest.mark.parametrize("found", [*lists()][::7], ids=lambda found: found.to_bytes().hex())
    def test_what_the_kernel_takes(self, tmp_path: Path, found: AccessList) -> None:
        """A list that is written is the directory's, and shows in its mode as it says."""
        with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
            acl.write(fd, found)
            assert acl.read(fd) == found
        assert mode(tmp_path) == f"{found.bits:04o}"

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\x02",
            struct.pack("<I", 3),
            struct.pack("<IH", 2, 1),
            struct.pack("<I", 2),
            access().to_bytes()[:-8],
            access(mask=None, u5=7).to_bytes(),
            access().to_bytes() + struct.pack("<HHI", 32, 7, NOBODY),
            access().to_bytes() + struct.pack("<HHI", 2, 7, 5),
            access().to_bytes() + struct.pack("<HHI", 64, 7, 5),
            access(group=8).to_bytes(),
        ],
        ids=bytes.hex,
    )
    def test_malformed(self, value: bytes) -> None:
        """Whatever no kernel accepts is refused: another version, length, order, tag or right, an entry too few."""
        with pytest.raises(ValueError, match=r"access control list|not a valid Tag"):
            AccessList.parse(value)

    def test_only_fuse_can_have_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is no list is an error in words, which says what removes it."""
        monkeypatch.setattr(os, "getxattr", lambda *_, **__: b"\x02")
        with pytest.raises(NotReady, match="setfacl -b"):
            acl.read(str(tmp_path))

    @pytest.mark.root
    def test_a_file_system_without_lists(self, tmp_path: Path) -> None:
        """Where the file system keeps no lists there is none, and nothing to take away."""
        with (
            mounted("-t", "ramfs", "none", str(tmp_path)),
            closing(os.open(tmp_path, os.O_RDONLY)) as fd,
        ):
            assert acl.read(fd) is None
            assert acl.warnings(fd, None) == []
            acl.disinherit(fd)


class TestMode:
    @pytest.mark.parametrize("bits", BITS, ids=oct)
    def test_nobody_gets_more_than_before(self, bits: int) -> None:
        """Whoever an entry names gets nothing by a mode that the list did not give already."""
        for before in lists():
            after = before.declare(bits)
            for old, new in zip(before.named, after.named, strict=True):
                assert after.effective(new) & ~before.effective(old) == 0, before
            if before.mask:
                for who in WHO[:2]:
                    assert rights(after, who) & ~rights(before, who) == 0, (before, who)

    @pytest.mark.parametrize("bits", BITS, ids=oct)
    def test_the_declared_get_what_is_declared(self, bits: int) -> None:
        """Owner, owning group and others may do what the mode says; so it is no drift the next time."""
        for before in lists():
            after = before.declare(bits)
            assert rights(after, Who(184, 5)) == bits >> 6
            assert after.group == bits >> 3 & 7
            assert rights(after, Who(9, 998)) == bits >> 3 & 7
            assert rights(after, Who(9, 9)) == bits & 7
            assert after.declare(bits) == after

    @pytest.mark.parametrize("bits", BITS, ids=oct)
    def test_the_mode_is_what_is_shown(self, bits: int) -> None:
        """stat(2) shows the mode that was set, but where a mask of 0 would let in whom the list keeps out."""
        for before in lists():
            after = before.declare(bits)
            if after.bits != bits:
                assert not bits & 0o070
                assert any(bits & 7 & ~before.effective(each) for each in before.named)

    def test_narrowing_loses_nothing(self) -> None:
        """A mode that gives less changes the mask only, as chmod does: what the entries say stays."""
        before = access(mask=7, u5=7)
        assert before.declare(0o750) == before.chmod(0o750)
        assert before.chmod(0).chmod(0o770) == before.chmod(0o770)

    def test_without_a_mask(self) -> None:
        """A list that names nobody can have no mask: the mode is the owning group's."""
        assert access(mask=None).declare(0o770) == access(group=7, mask=None)


class TestWords:
    def test_rights(self) -> None:
        """Each of the eight sets of rights has its words."""
        sets = [sum(each) for n in range(4) for each in itertools.combinations((READ, WRITE, ENTER), n)]
        assert [acl.words(each) for each in sets] == [
            "",
            "read",
            "write",
            "enter",
            "read and write",
            "read and enter",
            "write and enter",
            "read, write and enter",
        ]

    def test_who(self) -> None:
        """It says who gets in, and who is kept out, by the mask, too."""
        assert list(access(mask=6, u5=7, u6=1, g7=4).sentences()) == [
            "an access list lets the owning group only read, whatever the mode shows",
            "an access list lets user 5 read and write",
            "an access list keeps user 6 out",
            "an access list lets group 7 read",
        ]

    def test_many(self) -> None:
        """Of many the first are told, and the number of the others."""
        found = access(group=7, **{f"u{n}": ALL for n in range(100)})
        assert len(list(found.sentences())) == 6
        assert list(found.sentences())[-1] == "an access list names 95 more users and groups"
        assert found.inherited().endswith("which names user 0, user 1, user 2, user 3, user 4 and 95 more")

    def test_a_closed_one(self) -> None:
        """A list that does not count is no reason to say that somebody is kept out: he is one of the others."""
        (sentence,) = access(mask=0, u5=7).sentences()
        assert "counts for nothing" in sentence


@pytest.mark.root
def test_disinherit(tmp_path: Path) -> None:
    """Both lists go, and the mask does not become the group's."""
    set_list(tmp_path, "u:1005:rwx", "g::---", "m::rwx")
    set_list(tmp_path, "u:1005:rwx", "u::rwx", "g::rwx", "o::rwx", "m::rwx", default=True)
    assert listed(tmp_path, default=True)
    with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
        acl.disinherit(fd)
    assert not has_list(tmp_path)
    assert mode(tmp_path) == "0700"
