"""`hostprep prepare`: owner, mode and label for any directory, without a volume."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..errors import Invalid, NotAllowed, NotReady, printable
from ..host import acl, fds, rootless
from ..host.labels import Labels
from ..host.system import engine_data, system_directory
from ..options import Mode, Options, Recurse, parse_path
from . import process, walk
from .plan import Change, Found, Plan, Want
from .process import Progress

log = logging.getLogger("hostprep")

ACCEPTED = ("uid", "gid", "mode", "label", "recurse")
_WITHIN_A_VOLUME = re.compile("/volumes/[^/]+/_data/.+", re.DOTALL)


@dataclass(slots=True)
class Prepared:
    """What `prepare` did, or would do."""

    path: str
    made: bool = False
    changes: list[Change] = field(default_factory=list)
    tree: walk.Outcome | None = None
    """The outcome of the pass over the contents; None where none was needed."""
    warnings: list[str] = field(default_factory=list)
    """What its access lists mean, a sentence each."""


def prepare(
    path: str,
    given: Mapping[str, str],
    labels: Labels,
    *,
    root: str,
    dry_run: bool,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Prepared:
    """Give the directory *path* the owner, mode and label *given*; it is made where only its last component is missing.

    The contents come first and the directory itself last: where the directory is right, the contents are.

    Args:
        root: hostprep's own root, which is refused as system directories are, but for what is in a volume.
        dry_run: change nothing.
        report: called some times a second during the pass over the contents.

    Raises:
        Invalid: an option has no meaning here, or is malformed.
        NotAllowed: *path* is not for a container's data (see host/system.py), or has a symlink on the way.
        NotReady: the directory above does not exist.
        Unreadable: the pass over the contents failed; the directory itself is as it was.
    """
    for key in given:
        if key not in ACCEPTED:
            wrong = f'option "{printable(key)}" has no meaning for prepare'
            raise Invalid(wrong, hint=f"prepare takes {', '.join(ACCEPTED)}")
    options = Options.parse(given)
    rootless.check_ids(options.uid, options.gid)
    if options.label is not None:
        labels.check(options.label)
        if options.label.type and (refusal := labels.refusal(str(options.label))):
            log.warning("%s", refusal)
    path = parse_path(path)
    touched = system_directory(path, root) or engine_data(path, root)
    if touched and not (path.startswith(root) and _WITHIN_A_VOLUME.fullmatch(path.removeprefix(root))):
        where = f"{printable(path)} is, contains or lies in {printable(touched)}"
        raise NotAllowed(where, hint="choose a directory for data only")
    prepared = Prepared(path)
    parent, name = os.path.split(path)
    with contextlib.ExitStack() as stack:
        try:
            above = stack.enter_context(fds.closing(fds.walk(parent, trusted=False)))
        except FileNotFoundError as exc:
            missing = f"{printable(str(exc.filename))} does not exist"
            raise NotReady(missing, hint="prepare makes the last component only") from None
        prepared.made = not fds.exists(above, name)
        want = Want.of(options, labels, adopted=not prepared.made)
        if prepared.made:
            want = want.first()
            if dry_run:
                prepared.changes = list(Plan(-1, Found(0, 0, Mode(0o700), None, -1), want, labels).changes)
                return prepared
            data = fds.make_dir(above, name)
        else:
            data = fds.walk(path, trusted=False)
        stack.enter_context(fds.closing(data))
        plan = Plan.of(data, want, labels)
        prepared.changes, prepared.warnings = list(plan.changes), acl.warnings(data, plan.access)
        if not prepared.made and (plan.contents_follow or want.recurse is Recurse.ALWAYS):
            order = replace(want.order(labels, guarded=True, dry_run=dry_run), synced=True)
            prepared.tree = process.follow(process.begin(data, order), report)
        if not dry_run:
            prepared.changes = plan.apply()
            os.fsync(data)
            if prepared.made:
                os.fsync(above)
    return prepared
