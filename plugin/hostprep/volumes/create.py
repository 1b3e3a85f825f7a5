"""Create: a new directory, an adopted one, or data that a Remove had retained becomes a volume."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace

from ..errors import Busy, Conflict, HostprepError, Invalid, NoSuchVolume, NotAllowed, NotReady, Unreadable, printable
from ..host import fds, filesystem, rootless
from ..host.system import check_no_engine
from ..options import Name, Options, path_key
from ..settings import Settings
from ..tree.plan import Plan
from . import pins, trash
from .declaration import Asks, Declaration, Resolver
from .readiness import Readiness
from .record import WITHIN, Record, rfc3339
from .store import LockedName, Store
from .volume import DATA, Identity, open_parent

log = logging.getLogger("hostprep")


def create(
    readiness: Readiness,
    resolver: Resolver,
    removed: trash.Names,
    name: Name,
    given: Mapping[str, str],
    deadline: float,
    asks: Asks,
) -> None:
    """See `Driver.create`."""
    store, labels, declared = readiness.store, readiness.labels, Declaration(given)
    options = declared.options
    if options.path is not None and store.settings.managed:
        why = f"option {path_key(given)}: the managed plugin reaches no directory of the host but its own"
        raise NotAllowed(why, hint="leave it out; or install hostprep on the host: make install")
    check_host_ids(store.settings, options)
    if options.label is not None:
        labels.check(options.label)
    # An equal Create waits until the first knows whether the volume stays: it may have to be withdrawn.
    with store.lock(f"create/{name}", deadline):
        # The engine may take its time, so it is asked before the volume's own lock is taken, for which others wait.
        # A volume that is there keeps what its image said when it was made.
        if options.image is not None and store.find(name) is None:
            declared = resolver.resolve(declared, deadline)
        rootless.check_ids(declared.options.uid, declared.options.gid)
        with store.name_lock(name, deadline) as locked:
            if (existing := store.find(name)) is not None:
                _confirm(store, existing, given)
                return
            if options.image is not None and not declared.resolved:
                raise Busy(f"volume {name} was removed a moment ago", hint="start again")
            if options.label and options.label.type and (refusal := labels.refusal(str(options.label))):
                log.warning("create of %s: %s", name, refusal)
            if len(name) < 2 and name not in store.names():
                why = f"volume name {name} has one character"  # github.com/moby/moby, volume/service, names
                raise Invalid(why, hint="take two or more, as for Docker's local driver")
            before: Record | None = None
            made: Identity | None
            try:
                before, made = _reuse(store, locked, declared, deadline, resolver, asks)
            except NoSuchVolume:
                declared, earlier = resolver.mapped(declared, asks), removed.newest(name)
                made = _make(readiness, locked, declared, earlier, deadline)
                for said in trash.earlier_data(store, name, earlier) if earlier else ():
                    log.warning("create of %s: %s", name, said)
        if made is None:
            return
        try:
            readiness.ensure(name, deadline)
        except (Busy, NoSuchVolume) as exc:  # it is there; or somebody else has removed it since
            log.info("create of %s: %s", name, exc)
        except (HostprepError, OSError):
            _withdraw(store, name, made, before)
            raise


def check_host_ids(settings: Settings, options: Options) -> None:
    """Refuse host_uid and host_gid where no engine would see the mount that they take."""
    if options.host_uid is None and options.host_gid is None:
        return
    if settings.managed:
        why = "options host_uid and host_gid: the engine would not see a mount that the managed plugin makes"
        raise NotAllowed(why, hint="leave them out; or install hostprep on the host: make install")
    if rootless.inside():
        why = "options host_uid and host_gid: a user's hostprep makes no mounts"
        raise NotAllowed(why, hint="leave them out; uid=0 is you (docs/rootless.md)")


def _confirm(store: Store, existing: Record, given: Mapping[str, str]) -> None:
    """Check that *given* asks for nothing but what the volume has. No options ask for nothing."""
    # A Create that reused retained data put its options over those, and so does its repetition.
    asked = existing.declared.over(given) if existing.reused_at else given
    if given and (differing := existing.declared.differences(asked)):
        why = f"volume {existing.name} exists with other options: {'; '.join(differing)}"
        raise Conflict(why, hint="hostprep apply changes options in place; docker volume rm makes room for a new one")
    store.sync(existing.name)


def _reuse(
    store: Store, locked: LockedName, declared: Declaration, deadline: float, resolver: Resolver, asks: Asks
) -> tuple[Record, Identity]:
    """Make retained data a volume again, with *declared* over its own options. Returns its record as retained.

    Raises:
        NoSuchVolume: none is retained.
    """
    with locked.retained() as volume, contextlib.ExitStack() as claim:
        before = volume.record
        record = before.changed(resolver.mapped(declared, asks) if declared.options.userns else declared)
        with volume.open_data(as_mount=True) as data:  # or the engine would be told of what cannot be mounted
            if record.idmap is not None:
                pins.check(data, record.idmap)
        if record.options.path is not None:
            claim.enter_context(store.claim(record.options.path, locked.name, deadline, sharing=record))
        volume.reuse(replace(record, reused_at=rfc3339()))
        log.info("took up retained volume %s", locked.name)
        return before, volume.identity


def _make(
    readiness: Readiness, locked: LockedName, declared: Declaration, earlier: str, deadline: float
) -> Identity | None:
    """Make a volume that is not there, or not any more: its data is *earlier* in the trash.

    Returns its identity if its directory was adopted, and is not right yet.
    """
    store, labels = readiness.store, readiness.labels
    path, made_path, replaceable, parent, last = declared.options.path, False, "", -1, ""
    with contextlib.ExitStack() as stack:
        if path is not None:
            parent, last, replaceable = _open_parent(store, path, path_key(declared.given), stack)
            made_path = not fds.exists(parent, last)
            if not made_path and (kind := fds.kind(parent, last)) != "a directory":
                where = f"option {path_key(declared.given)}: {printable(path)}"
                raise NotAllowed(f"{where} is {kind}", hint="give a directory or a new name")
            if replaceable:
                pins.check(parent)
        record = Record(locked.name, declared, rfc3339(), made_path, pinned=bool(replaceable), replaces=earlier)
        if path is None:
            record = replace(record, data=WITHIN)
        elif not made_path:
            with fds.closing(fds.open_step(parent, last, path)) as adopted:
                record = replace(record, data=filesystem.fingerprint(adopted))
                if record.idmap is not None:
                    pins.check(adopted, record.idmap)
        if record.idmap is not None and not record.adopted:
            with store.part("volumes") as volumes:
                pins.check(volumes if path is None else parent, record.idmap)
        with contextlib.ExitStack() as claim:
            if path is not None:
                claim.enter_context(store.claim(path, locked.name, deadline, sharing=record))
            new = stack.enter_context(locked.new(record, deadline))
            if path is not None:  # the record first: after an interruption it says what was intended
                new.write_record()
        if record.adopted:
            # It is made right once the volume is there: then the next Mount completes what was interrupted.
            with new.open_data():
                new.publish()
            return new.identity
        with fds.closing(fds.make_dir(new.fd, DATA) if path is None else fds.make_dir(parent, last)) as data:
            Plan.of(data, new.want(labels).first(declared.userns.root), labels).apply()
            if path is None:  # the record last: on ext4 and XFS its sync brings all of it along, in one commit
                new.write_record()
            os.fsync(data)  # on btrfs only this brings it along
            if made_path:
                os.fsync(parent)
        new.publish()
        return None


def _open_parent(store: Store, path: str, key: str, stack: contextlib.ExitStack) -> tuple[int, str, str]:
    """`open_parent` until *stack* ends, for a volume that is made, with the option *key* in its errors."""
    try:
        opened = stack.enter_context(open_parent(store.settings, path))
        check_no_engine(path, store.root)
        return opened
    except NotAllowed as exc:
        raise NotAllowed(f"option {key}: {exc.message}", hint=exc.hint) from None
    except FileNotFoundError as exc:
        why = f"option {key}: {printable(str(exc.filename))} does not exist"
        raise NotReady(why, hint="hostprep makes the last component only; make the directory above it") from None


def _withdraw(store: Store, name: Name, made: Identity, before: Record | None) -> None:
    """Undo a Create whose directory could not be made right: back to the retained data *before*, or to nothing.

    Only the volume *made* is undone: another may have its name by now.
    """
    with contextlib.suppress(NoSuchVolume, Unreadable), store.locked(name, time.monotonic() + 10) as volume:
        if volume.identity == made:
            volume.release()  # a Mount may have been faster
            if before is None:
                volume.withdraw()
            else:
                volume.write(before)
                volume.retain()
