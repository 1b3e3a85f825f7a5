"""A root that an older version wrote is served as it is: no record is rewritten, but what is, in the same format."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hostprep.serve.wire import create_app
from hostprep.volumes import copying
from tests.support.fixtures import OpenDriver
from tests.support.host import Docker, Host, mode, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root

MARKER = '{"format": 1, "id": "7c5b1d0f4f7e4c0a9d3d2b1a0f9e8d7c"}\n'
PROGRESS = '{"done": 12345, "estimate": 200000, "rate": 4115.0, "seconds_left": 45.6}\n'
PLAIN = """{
  "name": "plain",
  "options": {},
  "created_at": "2026-03-01T08:00:00Z"
}
"""
FULL = """{
  "name": "full",
  "options": {
    "uid": "184",
    "gid": "998",
    "mode": "0750",
    "label": "container_file_t",
    "recurse": "mismatch",
    "on_remove": "retain"
  },
  "created_at": "2026-03-01T08:00:01Z",
  "taken_up": "2026-04-01T08:00:00Z",
  "left_alone": [
    "a/b: has 2 hard links",
    "c: is a device node"
  ],
  "imported": true
}
"""
IMAGE = """{
  "name": "image",
  "options": {
    "image": "mongo:7",
    "at": "/data/db"
  },
  "created_at": "2026-03-01T08:00:02Z",
  "resolved": {
    "uid": "184",
    "gid": "998"
  }
}
"""
NARROWED = """{
  "name": "narrowed",
  "options": {
    "uid": "184",
    "label": "container_file_t"
  },
  "created_at": "2026-03-01T08:00:03Z",
  "narrowed": "02771"
}
"""
PENDING = """{
  "name": "pending",
  "options": {
    "uid": "184"
  },
  "created_at": "2026-03-01T08:00:04Z"
}
"""
PINNED = """{
  "name": "pinned",
  "options": {
    "mountpoint": "SRV/home/db",
    "uid": "184"
  },
  "created_at": "2026-03-01T08:00:05Z",
  "made": true,
  "pinned": true
}
"""
ADOPTED = """{
  "name": "adopted",
  "options": {
    "path": "SRV/adopted",
    "recurse": "never"
  },
  "created_at": "2026-03-01T08:00:06Z"
}
"""
RETAINED = """{
  "name": "kept",
  "options": {
    "uid": "184",
    "on_remove": "retain"
  },
  "created_at": "2026-03-01T08:00:07Z"
}
"""
REMOVED = """{
  "name": "gone",
  "options": {
    "uid": "184"
  },
  "created_at": "2026-03-01T08:00:08Z",
  "left_alone": [
    "x: is a device node"
  ]
}
"""
REMOVED_RETAINED = """{
  "name": "older",
  "options": {
    "uid": "7",
    "on_remove": "retain"
  },
  "created_at": "2026-03-01T08:00:09Z"
}
"""
LIVE = {
    "plain": PLAIN,
    "full": FULL,
    "image": IMAGE,
    "narrowed": NARROWED,
    "pending": PENDING,
    "pinned": PINNED,
    "adopted": ADOPTED,
}
GONE = "20260301T090000Z-0abc1234"
OLDER = "20260301T090000Z-0abc1235"
RIGHT = ("plain", "full", "image", "pinned", "adopted")


def write(file: Path, text: str, host: Host) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(0o600)
    file.write_text(text.replace("SRV", str(host.srv)))


def data(host: Host, place: str, ids: str = "0:0 755") -> None:
    make_tree(host.root, f"dir {place}/_data {ids}", f"file {place}/_data/file {ids.split()[0]} 640 precious")


@pytest.fixture
def docker(open_driver: OpenDriver, host: Host) -> Docker:
    """The engine of a host whose root an older version wrote, with a record of each kind, and this version serving."""
    for part in ("locks", "mounts", "trash", "volumes"):
        (host.root / part).mkdir(mode=0o700, parents=True)
    host.root.chmod(0o700)
    write(host.root / "hostprep.json", MARKER, host)
    write(host.root / "locks/held", "", host)
    for name, text in LIVE.items():
        write(host.record(name), text, host)
    write(host.volume("pending") / "pass.json", PROGRESS, host)
    write(host.volume("kept") / "retained.json", RETAINED, host)
    write(host.root / f"trash/{GONE}/volume.json", REMOVED, host)
    write(host.root / f"trash/{OLDER}/retained.json", REMOVED_RETAINED, host)
    for name in ("plain", "kept", "pending"):
        data(host, f"volumes/{name}", "0:0 755" if name == "plain" else "184:0 755")
    data(host, "volumes/full", "184:998 750")
    data(host, "volumes/image", "184:998 755")
    data(host, "volumes/narrowed", "184:0 000")
    data(host, f"trash/{GONE}", "184:0 755")
    data(host, f"trash/{OLDER}", "7:0 755")
    make_tree(host.srv, "dir home 1000:1000", "dir home/db 184:0 755", "dir adopted 55:66 711")
    label = b"system_u:object_r:container_file_t:s0\0"
    for name in ("full", "narrowed"):
        for path in (host.data(name), host.data(name) / "file"):
            os.setxattr(path, "security.selinux", label)
    return Docker(create_app(open_driver(HOSTPREP_SELINUX="force")).test_client())


def files(host: Host) -> dict[str, bytes]:
    """The contents of every file of hostprep's own."""
    found = [path for path in host.root.rglob("*.json") if "_data" not in path.parts]
    return {str(path.relative_to(host.root)): path.read_bytes() for path in found}


def differing(host: Host, before: dict[str, bytes]) -> set[str]:
    now = files(host)
    return {name for name in {*before, *now} if before.get(name) != now.get(name)}


def test_what_is_read(docker: Docker, host: Host) -> None:
    """List, Path and Get name every volume with what its record says, and write nothing."""
    before = files(host)
    assert docker.names() == sorted(LIVE)
    for name, text in LIVE.items():
        record = json.loads(text.replace("SRV", str(host.srv)))
        volume = docker.get(name)
        assert (volume["CreatedAt"], volume["Status"]["options"]) == (record["created_at"], record["options"])
        assert docker("Path", Name=name).body["Mountpoint"] == volume["Mountpoint"]
        assert volume["Status"]["ready"] is (name in RIGHT), volume
        assert volume["Status"].get("resolved") == ({"uid": 184, "gid": 998} if name == "image" else None)
    warnings = docker.status("full")["warnings"]
    assert warnings[0].startswith("taken up again on 2026-04-01T08:00:00Z")
    assert warnings[1:3] == ["a/b: has 2 hard links", "c: is a device node"]
    assert docker.get("pinned")["Mountpoint"] == f"{host.root}/mounts/pinned"
    assert docker.status("narrowed")["drift"] == ["mode is 0000, declared 02771"]
    assert differing(host, before) == set()


def test_what_is_told_of_removed_ones(docker: Docker, open_driver: OpenDriver, host: Host) -> None:
    """The trash and what was retained are shown with their ids and options, and nothing is written."""
    before, driver = files(host), open_driver()
    assert [(each["id"], each["name"], each["removed_at"]) for each in driver.removed_volumes()] == [
        (OLDER, "older", "2026-03-01T09:00:00Z"),
        (GONE, "gone", "2026-03-01T09:00:00Z"),
    ]
    (kept,) = driver.retained_volumes()
    assert (kept["name"], kept["options"]) == ("kept", {"uid": "184", "on_remove": "retain"})
    driver.store.remove_leftovers()
    assert differing(host, before) == set()


def test_a_mount_of_what_is_right(docker: Docker, host: Host) -> None:
    """Mount and Unmount of a volume that is right, and an equal Create, write nothing but what a `path` is, once."""
    before = files(host)
    inodes = {name: os.stat(docker.mounted(name)).st_ino for name in RIGHT}
    noted = {f"volumes/{name}/{copying.FILE}" for name in RIGHT}  # of empty volumes, until their Unmount
    assert differing(host, before) - noted == {f"volumes/{name}/volume.json" for name in ("pinned", "adopted")}
    assert [docker.unmount(name).status for name in RIGHT] == [200] * len(RIGHT)
    for name in ("pinned", "adopted"):
        record = json.loads(host.record(name).read_text())
        assert record.pop("data").endswith(f":{inodes[name]}")
        assert record == json.loads(LIVE[name].replace("SRV", str(host.srv)))
    before = files(host)
    for name in RIGHT:
        assert docker.mounted(name) == Path(docker.get(name)["Mountpoint"])
        assert docker.unmount(name).status == 200
        assert docker.create(name).status == 200
    assert differing(host, before) == set()
    assert docker.remove("pinned").status == 200  # or its mount would be left


def test_a_mount_that_ends_what_was_begun(docker: Docker, host: Host) -> None:
    """A pass and a repair that the older version did not end are ended: the mark and `narrowed` go, no more."""
    before = files(host)
    docker.mounted("pending")
    docker.mounted("narrowed")
    assert owner(host.data("pending") / "file") == (184, 0)
    assert mode(host.data("narrowed")) == "2771"
    assert differing(host, before) == {"volumes/pending/pass.json", "volumes/narrowed/volume.json"}
    assert not (host.volume("pending") / "pass.json").exists()
    assert host.record("narrowed").read_text() == NARROWED.replace(',\n  "narrowed": "02771"', "")


@pytest.mark.parametrize(("name", "entry", "text"), [("gone", GONE, REMOVED), ("older", OLDER, REMOVED_RETAINED)])
def test_restored(docker: Docker, open_driver: OpenDriver, host: Host, name: str, entry: str, text: str) -> None:
    """A restored volume has the record that it had, byte for byte; under another name, but for the name."""
    before = files(host)
    open_driver().restore(name, entry=None, new_name=None, deadline=soon())
    assert host.record(name).read_text() == text
    record = f"trash/{entry}/{'volume' if name == 'gone' else 'retained'}.json"
    assert differing(host, before) == {record, f"volumes/{name}/volume.json"}
    assert (host.data(name) / "file").read_text() == "precious"
    assert docker.remove(name).status == 200
    if name == "older":
        open_driver().discard_retained(name, soon())
    open_driver().restore(name, entry=None, new_name="again", deadline=soon())
    assert host.record("again").read_text() == text.replace(f'"{name}"', '"again"')


def test_retained_and_reused(docker: Docker, host: Host) -> None:
    """Retained data becomes a volume again with the record that it had, and the time; removed, it has that record."""
    before = files(host)
    assert docker.create("kept").status == 200
    assert differing(host, before) == {"volumes/kept/volume.json", "volumes/kept/retained.json"}
    written: dict[str, Any] = json.loads(host.record("kept").read_text())
    when = written.pop("taken_up")
    assert written == json.loads(RETAINED)
    assert host.record("kept").read_text() == RETAINED.replace('07Z"\n}', f'07Z",\n  "taken_up": "{when}"\n}}')
    text = host.record("kept").read_bytes()
    assert docker.remove("kept").status == 200
    assert (host.volume("kept") / "retained.json").read_bytes() == text


def test_every_option_is_written_as_before(docker: Docker, open_driver: OpenDriver, host: Host) -> None:
    """A changed option changes its line in the record and no other, for a record with every key too."""
    open_driver(HOSTPREP_SELINUX="force").apply("full", {"mode": "0700"}, (), soon())
    assert host.record("full").read_text() == FULL.replace('"0750"', '"0700"')
    open_driver(HOSTPREP_SELINUX="force").apply("pinned", {"uid": "185"}, (), soon())
    assert host.record("pinned").read_text() == PINNED.replace("SRV", str(host.srv)).replace('"184"', '"185"')
    open_driver().apply("image", {"mode": "0700"}, (), soon())
    changed = json.loads(host.record("image").read_text())
    assert changed == {**json.loads(IMAGE), "options": {"image": "mongo:7", "at": "/data/db", "mode": "0700"}}


def test_removed_as_before(docker: Docker, host: Host) -> None:
    """What is removed is in the trash with its record byte for byte, closed to all but root."""
    assert docker.remove("plain").status == 200
    (entry,) = set(host.trash()) - {GONE, OLDER}
    record = host.root / "trash" / entry / "volume.json"
    assert record.read_text() == PLAIN
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
