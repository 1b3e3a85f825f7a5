"""`hostprep apply`: change the options of a volume in place, which engines cannot do."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Invalid, printable
from ..options import KNOWN, Name
from .declaration import Declaration, Resolver
from .readiness import Readiness
from .record import Record


def apply(
    readiness: Readiness,
    resolver: Resolver,
    name: Name,
    given: Mapping[str, str],
    unset: tuple[str, ...],
    deadline: float,
) -> Record:
    """See `Driver.apply`."""
    asked = Declaration(given)
    for key in unset:
        if key not in KNOWN:
            raise Invalid(f'unknown option "{printable(key)}"', hint=f"known are {', '.join(KNOWN)}")
    if asked.options.image is not None:
        with readiness.store.open(name):  # no engine is asked for a volume that is not there
            pass
    asked = resolver.resolve(asked, deadline)
    with readiness.store.locked(name, deadline) as volume:
        changed = volume.record.changed(asked, unset)
        if changed.options.label is not None:
            readiness.labels.check(changed.options.label)
        readiness.passes.cancel(name)
        volume.write(changed)
    return changed
