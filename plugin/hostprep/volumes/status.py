"""Get: a volume and its Status, as users are told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from ..errors import HostprepError, NotAllowed, NotReady, printable
from ..host import acl
from ..host.filesystem import takes_writes
from ..host.labels import Labels
from ..host.mountinfo import mount_table
from ..host.paths import is_below
from ..host.userns import HOST
from ..options import Recurse
from ..tree.plan import Change, Plan
from . import copying, trash
from .declaration import Asks, Resolver
from .foreign import Foreign
from .passes import Passes
from .record import Record
from .volume import Volume

_INTO = (
    "an image's files were copied into {}, with another owner; it is made right when that Mount is over, or at the next"
)
_COPYING: Final = "an engine may still be copying an image's files into it; what comes after is made right then"
_UNENDED: Final = "a pass over its contents has not ended, so some may have another owner or label still"
_READ_ONLY: Final = "it is mounted read-only, or its file system has stopped after an error, which dmesg shows"


def answer(volume: Volume, labels: Labels, passes: Passes, foreign: Foreign) -> dict[str, Any]:
    """The volume as Get answers it."""
    return {
        "Name": volume.name,
        "Mountpoint": volume.mountpoint,
        "CreatedAt": volume.record.created_at,
        "Status": _status(volume, labels, passes, foreign),
    }


def _status(volume: Volume, labels: Labels, passes: Passes, foreign: Foreign) -> dict[str, Any]:
    record, never = volume.record, volume.record.options.recurses is Recurse.NEVER
    repair = f"hostprep repair {volume.name}"
    status: dict[str, Any] = {"uid": None, "gid": None, "mode": None, "label": None}
    status |= {"options": dict(record.given), "ready": False, "drift": [], "warnings": [*_warnings(volume, labels)]}
    if record.declared.resolved:
        status["resolved"] = {key: int(value) for key, value in record.declared.resolved.items()}
    if record.declared.userns != HOST:
        status["userns"] = record.declared.userns.shown
    pending = volume.pending()
    if running := passes.running(volume.name):
        status["progress"] = asdict(running.progress)
    elif pending is not None and passes.runs_elsewhere(volume.name):
        status["progress"] = asdict(pending)
    try:
        with volume.open_data() as data:
            plan = Plan.of(data, volume.want(labels), labels)
            want, found = plan.want, plan.found
            status |= {"uid": found.uid, "gid": found.gid, "mode": str(found.mode), "label": found.label}
            inside = record.seen(found.uid, found.gid)
            if inside != (found.uid, found.gid):
                status |= {"uid": inside[0], "gid": inside[1], "host_uid": found.uid, "host_gid": found.gid}
            if record.idmap is not None:
                status["idmapped"] = volume.is_pinned(data)
                status["warnings"] += _unmapped(volume.mountpoint)
            status["drift"] = [_drift(change, record) for change in plan.changes]
            status["ready"] = not plan.changes and (pending is None or never)  # only a repair goes on then
            if not (writes := takes_writes(data)):
                status["ready"] = False
                status["warnings"].append(f"{printable(volume.place)} takes no writes: {_READ_ONLY}")
            if want.label is not None and found.device in labels.unlabelled:
                status["warnings"].append(f"the file system keeps no labels: {want.label} is not applied")
            elif (label := want.label or found.label) and (refusal := labels.refusal(label)):
                status["warnings"].append(refusal)
            if pending is not None and never and "progress" not in status:
                status["warnings"].append(f"{_UNENDED}; to complete it: {repair}")
            elif pending is not None and not never and copying.under_way(volume):
                status["warnings"].append(_COPYING)
            if copied := copying.copied_into(volume, data, want, labels):
                status["ready"] = False
                status["warnings"] += [_INTO.format(printable(path)) for path in copied]
            status["warnings"] += acl.warnings(data, found.access)
            stays = pending is None and writes and not plan.contents_follow
            if stays and (others := foreign.sentence(volume, data, want)):
                status["warnings"].append(f"{others}; if that is not meant: {repair}")
    except (NotReady, NotAllowed) as exc:
        status["warnings"].append(str(exc))
    return status


def _drift(change: Change, record: Record) -> str:
    sentence = f"{change.what} is {change.old}, declared {change.new}"
    if change.what != "owner":
        return sentence
    on_disk = int(change.new.split(":")[0]), int(change.new.split(":")[1])
    uid, gid = record.seen(*on_disk)
    return sentence if (uid, gid) == on_disk else f"{sentence} (on this host; {uid}:{gid} in the container)"


def _warnings(volume: Volume, labels: Labels) -> Iterator[str]:
    record = volume.record
    label = record.options.label
    if label is not None and label.type and not labels.applied:
        yield f"label {label} is recorded but not applied: SELinux is off on this host"
    if record.reused_at:
        yield f"taken up again on {record.reused_at} from the data that an earlier remove had retained"
    if record.replaces:
        yield from trash.earlier_data(volume.root, volume.name, record.replaces)
    yield from record.entries_left_alone


def _unmapped(mountpoint: str) -> Iterator[str]:
    """A warning for each mount in the volume that came after its own: what is in it is seen with the host's ids."""
    for mount in mount_table():
        if mount.point != mountpoint and is_below(mount.point, mountpoint) and "idmapped" not in mount.flags:
            hint = "start all containers of the volume again after docker volume rm and create, or unmount it"
            yield f"{printable(mount.point)} was mounted later: in it, containers see the host's ids; {hint}"


def of_another_engine(record: Record, resolver: Resolver, asks: Asks) -> Iterator[str]:
    """What is wrong where the containers of the engine that asks have other ids than the volume was made for.

    Of numbers that are this host's, as in a record from before there was a choice, nothing is where they have them.
    """
    declared = record.declared
    engine = None
    with contextlib.suppress(HostprepError):
        engine = resolver.of_engine(asks)
    if engine in (None, declared.userns) or resolver.whose(declared) == "host":
        return
    wanted, root = declared.in_containers, engine.root
    uid, gid = root[0] if wanted.uid is None else wanted.uid, root[1] if wanted.gid is None else wanted.gid
    if declared.userns != HOST or not engine.covers(uid, gid):
        what = f"it is prepared for containers whose ids are {declared.userns}, and those of the engine are {engine}"
        yield f"{what}; hostprep apply {record.name} -o userns=auto makes it theirs"
