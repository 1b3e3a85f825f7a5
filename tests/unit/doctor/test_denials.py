"""SELinux denials as the kernel, auditd and the journal record them. Real ones: tests/enforcing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hostprep.doctor import denials
from hostprep.doctor.denials import Denial, parse
from hostprep.host import fds
from hostprep.host.mountinfo import mount_of

SOURCE = "system_u:system_r:container_t:s0:c1,c2"
TARGET = "system_u:object_r:user_home_t:s0"
AVC = (
    f'avc:  denied  {{ read write }} for  pid=42 comm="sh" name="file" dev="vda1" ino=77 '
    f"scontext={SOURCE} tcontext={TARGET} tclass=file permissive=0"
)
DENIAL = Denial(("read", "write"), "file", SOURCE, TARGET, "sh", "file", "vda1", 77, 1700000000)


@pytest.mark.parametrize(
    "line",
    [
        f"type=AVC msg=audit(1700000000.123:456): {AVC}",
        f"1700000001.5 host kernel: audit: type=1400 audit(1700000000.123:456): {AVC}",
        f"1700000000.123456 host audit[42]: AVC {AVC}",
    ],
    ids=["audit log", "kernel", "journal"],
)
def test_record(line: str) -> None:
    """A denial is read alike from the audit log, the kernel's log and the journal."""
    assert parse(line) == DENIAL


def test_names() -> None:
    """A name in hexadecimal digits is decoded; of a path the last component counts."""
    found = parse(AVC.replace('"file"', "61206200"[:6]))
    assert found is not None
    assert found.name == "a b"
    found = parse(AVC.replace('name="file"', 'path="/data/some/other"'))
    assert found is not None
    assert found.name == "other"


@pytest.mark.parametrize(
    "line",
    [
        AVC.replace("permissive=0", "permissive=1"),
        AVC.replace("denied", "granted"),
        AVC.replace("tcontext=", "context="),
        "type=USER_AVC msg=audit(1.2:3): something else",
        "",
        "\udcff" * 10,
    ],
)
def test_no_denial(line: str) -> None:
    """A line that records no denial, as in permissive mode, is ignored."""
    assert parse(line) is None


def test_malformed_numbers() -> None:
    """A malformed inode counts as unknown."""
    found = parse(AVC.replace("ino=77", "ino=٧٧").replace("vda1", "\x1b[31m"))
    assert found is not None
    assert found.inode == 0


def test_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal denials are counted, with the last time; only the end of a long log is read."""
    log = tmp_path / "audit.log"
    lines = [f"type=AVC msg=audit(17000000{second:02}.1:{second}): {AVC}\n" for second in range(3)]
    log.write_text("x" * (5 << 20) + "\n" + "".join(lines))
    monkeypatch.setattr(denials, "AUDIT_LOG", str(log))
    where, found = denials.recorded()
    assert (where, found) == (str(log), [replace(DENIAL, times=3, last=1700000002)])
    assert "3 times" in denials.sentence(found[0])


def test_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without audit log and journal no denials are known."""
    monkeypatch.setattr(denials, "AUDIT_LOG", str(tmp_path / "none"))
    monkeypatch.setattr(denials, "_JOURNAL", (str(tmp_path / "no-journalctl"),))
    assert denials.recorded() == ("", [])


@pytest.mark.root
def test_concerning(tmp_path: Path) -> None:
    """A denial concerns the volume by device and inode, or where these are missing by name and label."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    os.setxattr(tmp_path / "a/b/file", "security.selinux", TARGET.encode())
    inode = (tmp_path / "a/b/file").stat().st_ino
    with fds.closing(os.open(tmp_path, fds.DIRECTORY)) as data:
        mount = mount_of(data)
        assert mount is not None
        device = os.path.basename(mount.source)
        numbered = replace(DENIAL, device=device, inode=inode)
        elsewhere = replace(numbered, device="sdz9")
        named = replace(DENIAL, inode=0, last=1)
        other = replace(named, target="system_u:object_r:etc_t:s0")
        itself = replace(numbered, inode=tmp_path.stat().st_ino, last=0)
        found = denials.concerning(data, mount, [numbered, elsewhere, named, other, itself])
    assert [(each.path, each.last, each.label) for each in found] == [
        (".", 0, None),
        ("a/b/file", 1, TARGET),
        ("a/b/file", 1700000000, TARGET),
    ]
