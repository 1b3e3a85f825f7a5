"""Get: a volume and its Status, as users are told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from ..errors import NotAllowed, NotReady, printable
from ..host import acl
from ..host.filesystem import takes_writes
from ..host.labels import Labels
from ..options import Recurse
from ..tree.plan import Plan, Want
from . import copying
from .passes import Passes
from .record import Record
from .volume import Volume

_INTO = (
    "an image's files were copied into {}, with another owner; it is made right when that Mount is over, or at the next"
)
_COPYING: Final = "an engine may still be copying an image's files into it; what comes after is made right then"
_READ_ONLY: Final = "it is mounted read-only, or its file system has stopped after an error, which dmesg shows"
_LOOKED_AT: Final = 100  # direct entries of an adopted directory


def answer(volume: Volume, labels: Labels, passes: Passes) -> dict[str, Any]:
    """The volume as Get answers it."""
    return {
        "Name": volume.name,
        "Mountpoint": volume.mountpoint,
        "CreatedAt": volume.record.created_at,
        "Status": _status(volume, labels, passes),
    }


def _status(volume: Volume, labels: Labels, passes: Passes) -> dict[str, Any]:
    record = volume.record
    status: dict[str, Any] = {"uid": None, "gid": None, "mode": None, "label": None}
    status |= {"options": dict(record.given), "ready": False, "drift": [], "warnings": [*_warnings(record, labels)]}
    if record.declared.resolved:
        status["resolved"] = {key: int(value) for key, value in record.declared.resolved.items()}
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
            status["drift"] = [f"{change.what} is {change.old}, declared {change.new}" for change in plan.changes]
            status["ready"] = not plan.changes and pending is None
            if not takes_writes(data):
                status["ready"] = False
                status["warnings"].append(f"{printable(volume.place)} takes no writes: {_READ_ONLY}")
            if want.label is not None and found.device in labels.unlabelled:
                status["warnings"].append(f"the file system keeps no labels: {want.label} is not applied")
            elif (label := want.label or found.label) and (refusal := labels.refusal(label)):
                status["warnings"].append(refusal)
            if pending is not None and copying.under_way(volume):
                status["warnings"].append(_COPYING)
            if copied := copying.copied_into(volume, data, want, labels):
                status["ready"] = False
                status["warnings"] += [_INTO.format(printable(path)) for path in copied]
            status["warnings"] += acl.warnings(data, found.access)
            if record.options.path is not None and want.recurse is Recurse.NEVER:
                status["warnings"] += _foreign(data, want)
    except (NotReady, NotAllowed) as exc:
        status["warnings"].append(str(exc))
    return status


def _warnings(record: Record, labels: Labels) -> Iterator[str]:
    label = record.options.label
    if label is not None and label.type and not labels.applied:
        yield f"label {label} is recorded but not applied: SELinux is off on this host"
    if record.reused_at:
        yield f"taken up again on {record.reused_at} from the data that an earlier remove had retained"
    yield from record.entries_left_alone


def _foreign(data: int, want: Want) -> list[str]:
    """A warning about owners other than the declared ones among the first entries of *data*."""
    foreign = looked = 0
    with os.scandir(data) as entries:
        for entry in entries:
            if looked == _LOOKED_AT:
                break
            looked += 1
            with contextlib.suppress(FileNotFoundError):
                st = entry.stat(follow_symlinks=False)
                foreign += want.uid not in (None, st.st_uid) or want.gid not in (None, st.st_gid)
    if not foreign:
        return []
    owner = f"{'any' if want.uid is None else want.uid}:{'any' if want.gid is None else want.gid}"
    return [f"{foreign} of the first {looked} entries are not owned by {owner}; recurse=mismatch would change them"]
