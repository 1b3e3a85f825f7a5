"""The record of a volume, read back as strictly as options are read from the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostprep.errors import Invalid, Unreadable
from hostprep.options import Mode, Name
from hostprep.volumes import record
from hostprep.volumes.declaration import Declaration
from hostprep.volumes.record import LIMIT, WITHIN, Record, rfc3339

MONGO = Name("mongo")
GOOD: dict[str, Any] = {"name": "mongo", "options": {"uid": "184"}, "created_at": "2026-11-24T04:00:00Z"}


def damaged(data: bytes) -> str:
    with pytest.raises(Unreadable, match="record is damaged") as caught:
        Record.from_json(data, name=MONGO)
    return str(caught.value)


def test_what_is_written_is_read() -> None:
    """A record reads back equal, with everything it may hold."""
    record = Record(
        MONGO,
        Declaration({"uid": "184"}),
        rfc3339(),
        made_path=True,
        reused_at=rfc3339(),
        entries_left_alone=("a: is a device",),
    )
    record = replace(record, narrowed=Mode(0o2750))
    assert Record.from_json(record.to_json(), name=MONGO) == record
    assert record.options.uid == 184
    pinned = Record(MONGO, Declaration({"path": "/srv/db"}), rfc3339(), pinned=True)
    assert Record.from_json(pinned.to_json(), name=MONGO) == pinned
    for data in ("ext4:0123456789abcdef:2", "nfs::5", "1021994::"):
        assert Record.from_json(replace(pinned, data=data).to_json(), name=MONGO).data == data
    assert Record.from_json(replace(record, data=WITHIN).to_json(), name=MONGO).data == WITHIN


CHARACTERS = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/")  # of a path, in any language
LONGEST = "/" + "/".join(["\x01" * 255] * 15) + "/" + "\x01" * 254


@st.composite
def records(draw: st.DrawFn) -> Record:
    parts = st.text(CHARACTERS, min_size=1, max_size=63).filter(lambda part: part not in (".", ".."))
    paths = st.just(LONGEST) | st.lists(parts, min_size=1, max_size=16).map(lambda parts: "/" + "/".join(parts))
    long = st.sampled_from(["\x01", "é", "\U0001f600"]).map(lambda character: character * 4200)
    options = draw(st.sampled_from([{}, {"uid": "184", "mode": "02770", "recurse": "always", "on_remove": "retain"}]))
    options |= {"label": f"container_file_t:s0:{','.join(['c1'] * 300)}", "path": draw(paths)}
    resolved = {}
    if draw(st.booleans()):
        options |= {"image": "mongo", "at": draw(paths)}
        resolved = {"uid": "1", "gid": "2"}
    return Record(
        Name("n" * 255),
        Declaration(options, resolved),
        rfc3339(),
        made_path=draw(st.booleans()),
        reused_at=rfc3339(),
        entries_left_alone=tuple(draw(st.lists(st.text(CHARACTERS) | long, max_size=6))),
        narrowed=draw(st.none() | st.just(Mode(0o750))),
        pinned=draw(st.booleans()),
        data=draw(st.sampled_from(["", "ext4:0123456789abcdef:2"])),
    )


@given(records())
@example(
    Record(
        Name("n" * 255),
        Declaration({"path": LONGEST, "image": "mongo", "at": LONGEST}, {"uid": "1", "gid": "2"}),
        rfc3339(),
        entries_left_alone=("\U0001f600" * 5000,) * 6,
    )
)
def test_whatever_is_written_is_read(record: Record) -> None:
    """However long its options are, a record reads back; of what was left alone only the text may be shorter."""
    data = record.to_json()
    read = Record.from_json(data, name=record.name)

    assert len(data) <= LIMIT
    assert replace(read, entries_left_alone=record.entries_left_alone) == record
    for line, written in zip(record.entries_left_alone, read.entries_left_alone, strict=True):
        assert line == written or (line.startswith(written[:-1]) and written.endswith("…"))


def test_what_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options for which a record has no room are refused, and so is a value that nobody could read back."""
    monkeypatch.setattr(record, "LIMIT", 200)
    with pytest.raises(Invalid, match="do not fit into 200 bytes.*shorter path"):
        Record(MONGO, Declaration({"uid": "184", "path": "/srv/" + "x" * 200}), rfc3339()).to_json()
    with pytest.raises(Unreadable, match="created_at"):
        Record(MONGO, Declaration(), rfc3339(1e12)).to_json()


def test_what_an_image_said() -> None:
    """What was found in an image is kept beside the options, stands where they say nothing, and is on disk."""
    resolved = {"uid": "184", "gid": "998"}
    record = Record(MONGO, Declaration({"image": "mongo", "uid": "5"}, resolved), rfc3339())
    assert (record.options.uid, record.options.gid) == (5, 998)
    assert Record.from_json(record.to_json(), name=MONGO) == record
    assert json.loads(record.to_json())["resolved"] == resolved
    assert json.loads(record.to_json())["options"] == {"image": "mongo", "uid": "5"}


def test_the_fields_of_the_file() -> None:
    """On disk are the name, the options as they were given, and the time of creation."""
    record = Record(MONGO, Declaration({"mode": "00750"}), "2026-11-24T04:00:00Z")
    assert json.loads(record.to_json()) == {
        "name": "mongo",
        "options": {"mode": "00750"},
        "created_at": "2026-11-24T04:00:00Z",
    }


@pytest.mark.parametrize("length", [0, 1, 10, -3, -2])
def test_truncated(length: int) -> None:
    """A record that ends early is damaged."""
    damaged(Record(MONGO, Declaration({"uid": "184"}), rfc3339()).to_json()[:length])


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b'"mongo"', b"{}", b"\xff", b"[" * 100_000, b"NaN", b"\0" * 100],
    ids=["empty", "null", "array", "string", "no-keys", "not-utf8", "deep", "not-a-number", "zeros"],
)
def test_another_shape(data: bytes) -> None:
    """What is no JSON object of a record is damaged."""
    damaged(data)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "other"}, "another volume"),
        ({"name": None}, "name"),
        ({"name": 1}, "name"),
        ({"options": None}, "options"),
        ({"options": []}, "options"),
        ({"options": {"uid": 184}}, "options"),
        ({"options": {"uid": "x"}}, "uid"),
        ({"options": {"colour": "red"}}, "colour"),
        ({"options": {"uid": ""}}, "uid"),
        ({"options": {"path": "/srv/../etc"}}, "path"),
        ({"options": {"path": "/srv/db", "on_remove": "delete"}}, "on_remove"),
        ({"created_at": "yesterday"}, ""),
        ({"created_at": 1}, "created_at"),
        ({"created_at": "2026-11-24T04:00:00"}, "created_at"),
        ({"created_at": "2026-11-24"}, "created_at"),
        ({"created_at": "20261124T040000Z"}, ""),
        ({"created_at": "2026-W48-2T04:00:00Z"}, ""),
        ({"created_at": "2026-11-24 04:00:00+00:00"}, ""),
        ({"created_at": "2026-11-24T04Z"}, ""),
        ({"created_at": "2026-11-24T04:00:00+00:00:30"}, ""),
        ({"colour": "red"}, "colour"),
        ({"made": "yes"}, "made"),
        ({"made": 1}, "made"),
        ({"options": {"path": "/srv/db"}, "pinned": 1}, "pinned"),
        ({"pinned": True}, "pinned"),
        ({"imported": 1}, "imported"),
        ({"options": {"path": "/srv/db"}, "imported": True}, "imported"),
        ({"options": {"mountpoint": "/srv/db"}, "imported": True}, "imported"),
        ({"taken_up": ""}, ""),
        ({"options": {"image": "mongo"}}, "resolved"),
        ({"options": {"image": "mongo"}, "resolved": {}}, "resolved"),
        ({"options": {"image": "mongo"}, "resolved": {"uid": "1"}}, "resolved"),
        ({"options": {"image": "mongo"}, "resolved": {"uid": "1", "gid": "x"}}, "gid"),
        ({"options": {"image": "mongo"}, "resolved": {"uid": "1", "gid": 1}}, "resolved"),
        ({"options": {"image": "mongo"}, "resolved": {"uid": "1", "gid": "1", "mode": "0755"}}, "resolved"),
        ({"options": {"image": "mongo"}, "resolved": []}, "resolved"),
        ({"options": {"at": "/data"}, "resolved": {"uid": "1", "gid": "1"}}, "image"),
        ({"resolved": {"uid": "1", "gid": "1"}}, "resolved"),
        ({"left_alone": "a"}, "left_alone"),
        ({"left_alone": [1]}, "left_alone"),
        ({"narrowed": 488}, "narrowed"),
        ({"data": ""}, "data"),
        ({"data": 2}, "data"),
        ({"data": "ext4:2"}, "data"),
        ({"data": "ext4:x:2"}, "data"),
        ({"data": "within", "options": {"path": "/srv/db"}}, "data"),
        ({"narrowed": "750"}, "mode"),
    ],
    ids=str,
)
def test_another_value(change: dict[str, Any], word: str) -> None:
    """A key missing, unknown or of another kind, a bad option and a time that no engine could read are damage."""
    given = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    assert word in damaged(json.dumps(given).encode())


@pytest.mark.parametrize("key", list(GOOD))
def test_a_key_missing(key: str) -> None:
    """Name, options and time of creation must be there."""
    damaged(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode())


def test_a_key_twice() -> None:
    """A key that stands twice is damage, in the options too."""
    text = json.dumps(GOOD)
    damaged(text.replace('"name"', '"name": "mongo", "name"', 1).encode())
    damaged(text.replace('"uid"', '"uid": "1", "uid"', 1).encode())


def test_the_name_it_says() -> None:
    """In the trash a record has whatever name it says."""
    assert Record.from_json(json.dumps(GOOD).encode(), name=None).name == "mongo"


def test_a_name_that_no_volume_can_have() -> None:
    """A record in the trash that names no possible volume is damaged."""
    with pytest.raises(Unreadable):
        Record.from_json(json.dumps({**GOOD, "name": "../etc"}).encode(), name=None)


@pytest.mark.parametrize(
    ("options", "made", "adopted"),
    [({}, False, False), ({"path": "/srv/db"}, True, False), ({"path": "/srv/db"}, False, True)],
    ids=["own", "path-made", "path-adopted"],
)
def test_adopted(options: dict[str, str], made: bool, adopted: bool) -> None:  # noqa: FBT001
    """A directory is adopted where it was there before the volume."""
    assert Record(MONGO, Declaration(options), rfc3339(), made_path=made).adopted is adopted


@given(st.integers(0, 4102444800))
def test_times_are_rfc3339(at: int) -> None:
    """A time is written in UTC, and reads back to the second."""
    text = rfc3339(at)
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == datetime.fromtimestamp(at, UTC)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_json_is_a_record_or_damage(value: Any) -> None:
    """No JSON leads to anything but a record or a damaged one."""
    with pytest.raises(Unreadable):
        Record.from_json(json.dumps(value).encode(), name=MONGO)
