"""The verbs of a volume driver, each idempotent. Knows neither HTTP nor terminals: the wire and the command line do.

A caller gives a *deadline* on the clock of time.monotonic(): the moment at which it wants an answer, whatever it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

from ..errors import (
    Busy,
    Conflict,
    HostprepError,
    Invalid,
    NoSuchVolume,
    NotAllowed,
    NotReady,
    Redirectable,
    Unreadable,
    in_words,
    printable,
)
from ..host import fds, mountinfo
from ..host.labels import Labels
from ..host.paths import is_below, overlap
from ..options import ALIAS, KNOWN, Options, Recurse, check_name, differences, path_key
from ..settings import Settings
from ..tree.plan import Found, Want, apply, plan
from . import pins, trash
from .passes import read_mark
from .readiness import Readiness
from .record import Record, rfc3339
from .store import DATA, PATHS, RECORD, RETAINED, Listing, Store

log = logging.getLogger("hostprep")

_SOON: Final = 10.0  # seconds
_LOOKED_AT: Final = 100  # direct entries of an adopted directory
_ASKING: Final = 24  # requests that may wait for an engine's word about images at once; as many for passes


class Images(Protocol):
    """Who knows images: engine/client.py, where the administrator has named an engine."""

    def owner_options(self, image: str, at: str | None, deadline: float) -> Mapping[str, str]:
        """The options `uid` and `gid` for a volume of *image* at *at*.

        Raises:
            NoEngine, NoImage: that cannot be told.
        """


class Driver:
    """The volumes of one root. One object serves every thread."""

    def __init__(self, settings: Settings, store: Store, labels: Labels, images: Images | None = None) -> None:
        self.settings = settings
        self.store = store
        self.labels = labels
        self._readiness = Readiness(store, labels)
        self.passes = self._readiness.passes
        self.removed = threading.Event()
        """Set when something went to the trash that is to be purged at once."""
        self._removed: dict[str, float] = {}
        self._images = images
        self._asking = threading.BoundedSemaphore(_ASKING)

    @classmethod
    def open(cls, settings: Settings, *, create: bool, images: Images | None = None) -> Driver:
        """Open the root and the labels of this host. Without *images* the option `image` is refused.

        Raises:
            BadSetting: one of them cannot be used.
        """
        labels = Labels.open(settings.selinux, managed=settings.managed)
        return cls(settings, Store.open(settings, create=create), labels, images)

    # -- what changes a volume -------------------------------------------------------------------------------------

    def create(self, name: str, given: Mapping[str, str], deadline: float) -> None:
        """Make the volume *name*, or find it made with equal options; without options any is equal.

        Raises:
            Invalid: the name or an option is malformed. Nothing has been touched.
            Conflict: it exists with other options, or its path is another volume's.
            NotAllowed: its path is not allowed, or unsafe; or images are not to be looked into here.
            NoImage: the image is not there, or does not tell its numbers.
        """
        check_name(name)
        options = Options.parse(given)
        if options.path is not None and self.settings.managed:
            raise NotAllowed(
                f"option {path_key(given)}: the managed plugin reaches no directory of the host but its own",
                hint="leave it out; or install hostprep on the host: make install",
            )
        if options.label is not None:
            self.labels.check(options.label)
        # An equal Create waits until the first knows whether the volume stays: it may have to be withdrawn.
        with self.store.lock(f"create/{name}", deadline):
            resolved: Mapping[str, str] = {}
            # Before the volume's own lock, for which an engine that does not answer would make others wait. A volume
            # that is there keeps what was found when it was made.
            if options.image is not None and not self._is_there(name):
                resolved = self.resolve(options, deadline)
                options = Options.parse({**resolved, **given})
            self._create(name, given, resolved, options, deadline)

    def _is_there(self, name: str) -> bool:
        try:
            self.store.read(name)
        except NoSuchVolume:
            return False
        return True

    def resolve(self, options: Options, deadline: float) -> Mapping[str, str]:
        """What the image of *options* says, as further options.

        Raises:
            NotAllowed, NoImage, Busy: as for Create.
        """
        if options.image is None:
            return {}
        if self._images is None and self.settings.managed:
            raise NotAllowed(
                "option image: the managed plugin reaches no engine that could be asked",
                hint="give the uid and gid that hostprep probe shows; or install hostprep on the host: make install",
            )
        if self._images is None:
            raise NotAllowed(
                "option image: HOSTPREP_DOCKER_HOST names no engine that could be asked",
                hint="the administrator sets it; or give the uid and gid that hostprep probe shows",
            )
        if not self._asking.acquire(blocking=False):
            raise Busy("too many images are being looked into", hint="start again later")
        try:
            found = self._images.owner_options(options.image, options.at, deadline)
        finally:
            self._asking.release()
        log.info("image %s: uid %s, gid %s", options.image, found["uid"], found["gid"])
        return found

    def _create(
        self,
        name: str,
        given: Mapping[str, str],
        resolved: Mapping[str, str],
        options: Options,
        deadline: float,
    ) -> None:
        with self.store.lock(name, deadline), contextlib.ExitStack() as claim:
            if options.path is not None:
                claim.enter_context(self.store.lock(PATHS, deadline))
            try:
                existing = self.store.read(name)
            except NoSuchVolume:
                existing = None
            if existing is not None:
                # What took up a retained volume went over the options of that, and so does its repetition.
                asked = _over(existing.given, given) if existing.taken_up else given
                if given and (differing := differences(existing.given, asked)):
                    raise Conflict(
                        f"volume {name} exists with other options: {'; '.join(differing)}",
                        hint="hostprep apply changes options in place; docker volume rm makes room for a new one",
                    )
                self.store.sync(name)
                return
            if options.image is not None and not resolved:
                raise Busy(f"volume {name} was removed a moment ago", hint="start again")
            if options.label and options.label.type and (refusal := self.labels.refusal(str(options.label))):
                log.warning("create of %s: %s", name, refusal)
            retained = self._take_up(name, given, resolved)
            if retained is None and not self._make(name, given, resolved, options, deadline):
                return
            with self.store.volume(name) as volume:
                made = os.fstat(volume)
        try:
            self._readiness.make(name, deadline)
        except (Busy, NoSuchVolume) as exc:  # it is there, or was, and somebody else has removed it since
            log.info("create of %s: %s", name, exc)
        except (HostprepError, OSError):
            self._withdraw(name, made, retained)
            raise

    def _withdraw(self, name: str, made: os.stat_result, retained: Record | None) -> None:
        """Undo a Create whose directory could not be made right: back to *retained*, or to no volume.

        Only of the volume whose directory is *made*: another may have its name by now.
        """
        with contextlib.suppress(NoSuchVolume), self.store.lock(name, time.monotonic() + _SOON):
            with self.store.volume(name) as volume:
                if not os.path.samestat(os.fstat(volume), made) or not fds.exists(volume, RECORD):
                    return
                self.store.release(name)  # a Mount may have been faster
                if retained is not None:
                    self.store.write(volume, RECORD, retained.to_json())
                    self._retain(volume)
                    return
            self.store.disappear(name)

    def _retain(self, volume: int) -> None:
        with self.store.part("volumes") as volumes:
            os.rename(RECORD, RETAINED, src_dir_fd=volume, dst_dir_fd=volume)
            os.fsync(volume)
            os.utime(volumes)  # what a List remembers is out of date

    def _take_up(self, name: str, given: Mapping[str, str], resolved: Mapping[str, str]) -> Record | None:
        """Bring a retained volume back, with its own options and over them *given*; its record as it was retained."""
        try:
            with self.store.volume(name) as volume, self.store.part("volumes") as volumes:
                record = self.store.retained(volume, name)
                if record is None:
                    return None
                merged = _merge(record, given, (), resolved)
                if merged.options.path is not None:
                    self.store.check_claim(merged.options.path, name=name)
                merged = replace(merged, taken_up=rfc3339())
                self.store.write(volume, RECORD, merged.to_json())
                os.unlink(RETAINED, dir_fd=volume)
                os.fsync(volume)
                os.utime(volumes)  # what a List remembers is out of date
        except NoSuchVolume:
            return None
        log.info("took up retained volume %s", name)
        return record

    def _make(
        self, name: str, given: Mapping[str, str], resolved: Mapping[str, str], options: Options, deadline: float
    ) -> bool:
        """Make a volume that is not there; whether its directory, being adopted, has still to be mended."""
        path, made, pinned, parent, last = options.path, False, False, -1, ""
        with contextlib.ExitStack() as stack:
            if path is not None:
                self.store.check_claim(path, name=name)
                parent, last, pinned = self._parent(path, path_key(given))
                stack.callback(os.close, parent)
                made = not fds.exists(parent, last)
                if not made and (kind := fds.kind(parent, last)) != "a directory":
                    where = f"option {path_key(given)}: {printable(path)}"
                    raise NotAllowed(f"{where} is {kind}", hint="give a directory or a new name")
                if pinned:
                    pins.check(parent)
            record = Record(name, dict(given), rfc3339(), made, pinned=pinned, resolved=dict(resolved))
            new, temporary = stack.enter_context(self.store.new(deadline))
            if path is None:
                data = fds.make_dir(new, DATA)
            else:
                # The record first: it says what was intended, should what follows be interrupted.
                fds.write_file(new, RECORD, record.to_json(), durable=True)
                data = fds.make_dir(parent, last) if made else self.store.open_data(new, record)
            with fds.held(data):
                # An adopted directory is mended when the volume is there: only then can an interruption be.
                if not record.adopted:
                    want = Want.of(options, self.labels, adopted=False).first()
                    found = Found.at(data, self.labels)
                    apply(data, plan(found, want, self.labels), found, want, self.labels)
                if path is None:  # the record last: on ext4 and XFS its fsync brings all of it along, in one commit
                    fds.write_file(new, RECORD, record.to_json(), durable=True)
                if not record.adopted:
                    os.fsync(data)  # on btrfs only this brings it along
                if made:
                    os.fsync(parent)
            self.store.appear(temporary, name)
        return record.adopted

    def _parent(self, path: str, key: str) -> tuple[int, str, bool]:
        """The open directory above *path*, the last component, and whether somebody could redirect it.

        Args:
            key: the option that names it, for messages.
        """
        try:
            try:
                return *self.store.open_parent(path, trusted=True), False
            except Redirectable:
                return *self.store.open_parent(path, trusted=False), True
        except NotAllowed as exc:
            raise NotAllowed(f"option {key}: {exc.message}", hint=exc.hint) from None
        except FileNotFoundError as exc:
            raise NotReady(
                f"option {key}: {printable(str(exc.filename))} does not exist",
                hint="hostprep makes the last component only; make the directory above it",
            ) from None

    def remove(self, name: str, deadline: float) -> None:
        """Take the volume away: to the trash, or only its record where the data is to stay.

        Raises:
            NoSuchVolume: there is none, and hostprep removed none of that name within the last minute.
        """
        check_name(name)
        with self.store.lock(name, deadline):
            try:
                record = self.store.read(name)
            except NoSuchVolume:
                if self._removed.get(name, -60.0) > time.monotonic() - 60 or trash.removed_lately(self.store, name):
                    self.store.sync(name)
                    return
                raise
            self.passes.cancel(name)
            self.store.release(name)
            if record.options.retains:
                with self.store.volume(name) as volume:
                    self._retain(volume)
                log.info("retained the data of %s", name)
            else:
                entry = trash.discard(self.store, name)
                log.info("moved %s to the trash as %s", name, entry)
            now = time.monotonic()
            self._removed = {name: now} | {n: at for n, at in self._removed.items() if at > now - 60 and n != name}
        if self.settings.trash_keep == 0:
            self.removed.set()

    def discard_retained(self, name: str, deadline: float) -> None:
        """Move a retained volume, data and all, to the trash.

        Raises:
            NoSuchVolume: none of that name is retained.
        """
        check_name(name)
        with self.store.lock(name, deadline):
            with self.store.volume(name) as volume:
                if fds.exists(volume, RECORD) or not fds.exists(volume, RETAINED):
                    raise NoSuchVolume(f"no retained volume {name}", hint="hostprep ls --retained shows them")
            trash.discard(self.store, name)

    def restore(self, name: str, *, entry: str | None, new_name: str | None, deadline: float) -> Record:
        """Bring a removed volume back; see trash.restore."""
        new_name = check_name(new_name or name)
        try:
            return trash.restore(self.store, check_name(name), entry=entry, new_name=new_name, deadline=deadline)
        except FileNotFoundError:
            raise NoSuchVolume(
                f"removed volume {name} was purged a moment ago", hint="hostprep ls --trash shows what is left"
            ) from None

    def purge(self, ids: list[str] | None) -> int:
        """Delete removed volumes for good: those of the *ids*, all for None, what is due for none given.

        Returns how many are gone; see trash.purge for what it raises.
        """
        if ids:
            return trash.purge(self.store, ids)
        gone = trash.end_purges(self.store)
        if ids is None:
            return gone + trash.purge(self.store, [removed.id for removed in trash.entries(self.store)], insist=False)
        while chosen := trash.due(self.store, self.settings.trash_keep):
            gone += trash.purge(self.store, chosen, insist=False)
        return gone

    def change(self, name: str, given: Mapping[str, str], unset: tuple[str, ...], deadline: float) -> Record:
        """Change options in place (the command line's `apply`), which engines cannot. What has to follow is pending.

        Raises:
            Invalid: as for Create.
            Conflict: `path` would change.
            NoSuchVolume: there is none.
            NotAllowed, NoImage: as for Create. An image is looked into again whenever it is given.
        """
        options = Options.parse(given)
        for key in unset:
            if key not in KNOWN:
                raise Invalid(f'unknown option "{printable(key)}"', hint=f"known are {', '.join(KNOWN)}")
        if options.image is not None:
            self.store.read(check_name(name))  # who asks for a volume that is not there need not wait for an engine
        resolved = self.resolve(options, deadline)
        with self.store.lock(name, deadline), self.store.volume(name) as volume:
            record = self.store.record(volume, name)
            changed = _merge(record, given, unset, resolved)
            if changed.options.label is not None:
                self.labels.check(changed.options.label)
            self.passes.cancel(name)
            self.store.write(volume, RECORD, changed.to_json())
        return changed

    # -- readiness ---------------------------------------------------------------------------------------------------

    def mount(self, name: str, deadline: float, *, engine: int | None = None) -> str:
        """Make the volume right, whatever was done to it, and answer where it is.

        Args:
            engine: the process that will open what is answered (0: one that cannot be seen from here); None where
                none will, and then a mount that would lead there is not made.

        Raises:
            NoSuchVolume, Unreadable, NotReady, NotAllowed: there is nothing that could be answered.
            Busy: a pass over its tree takes longer than *deadline*; it goes on, and the next Mount joins it.
        """
        if self.settings.managed:
            self._check_mounts(check_name(name))
        return self._readiness.make(check_name(name), deadline, engine=engine)

    def _check_mounts(self, name: str) -> None:
        """Refuse what is mounted below the managed plugin's directory. The engine sees that through a propagated copy,
        and when it takes the copy away, with the plugin, the original on the host can go with it."""
        root, within = self.settings.root, f"{self.settings.root}/volumes/{name}"
        for mount in mountinfo.mount_table():
            if is_below(mount.point, root) and overlap(mount.point, within):
                raise NotAllowed(
                    f"{printable(mount.point)} is a mount: the engine could unmount it, on the host too, together with "
                    "the managed plugin",
                    hint="mount the disk at /var/lib/hostprep itself, or install hostprep on the host: make install",
                )

    def unmount(self, name: str, deadline: float) -> None:
        """Make the volume right again: copy-up may just have been. Whatever is in the way is logged, not raised."""
        try:
            self._readiness.make(check_name(name), deadline, swept=True)
        except (NoSuchVolume, Busy) as exc:
            log.info("unmount of %s: %s", printable(name), exc)
        except (HostprepError, OSError) as exc:
            log.warning("unmount of %s: %s", printable(name), printable(in_words(exc)))

    # -- what only looks ---------------------------------------------------------------------------------------------

    def volumes(self) -> Listing:
        """Every volume and its mountpoint, None where the record is damaged.

        Raises:
            Unreadable: the root cannot be read.
        """
        return self.store.listing()

    def removed_volumes(self) -> list[dict[str, Any]]:
        """What restore can bring back, the newest first."""
        return [
            {
                "id": removed.id,
                "name": removed.record.name if removed.record else None,
                "removed_at": removed.removed_at,
                "options": dict(removed.record.given) if removed.record else None,
            }
            for removed in trash.entries(self.store)
        ]

    def retained_volumes(self) -> list[dict[str, Any]]:
        """What Create of the same name takes up again."""
        found = []
        for name in self.store.names():
            with contextlib.suppress(NoSuchVolume, Unreadable), self.store.volume(name) as volume:
                record = self.store.retained(volume, name)
                if record is not None and not fds.exists(volume, RECORD):
                    options = dict(record.given)
                    where = self.store.place(record)
                    found.append(
                        {
                            "name": name,
                            "mountpoint": where,
                            "created_at": record.created_at,
                            "options": options,
                        }
                    )
        return found

    def path(self, name: str) -> str:
        """Where the volume *name* is; whether it is ready is not looked at."""
        return self.store.mountpoint(self.store.read(name))

    def get(self, name: str) -> dict[str, Any]:
        """The volume *name* as Get answers it, Status included.

        Raises:
            NoSuchVolume: there is definitely none; of a name that none can have, too.
            Unreadable: in any doubt, and then nothing may be answered.
        """
        try:
            check_name(name)
        except Invalid as exc:
            raise NoSuchVolume(exc.message, hint=exc.hint) from None
        try:
            with self.store.volume(name) as volume:
                record = self.store.record(volume, name)
                return {
                    "Name": name,
                    "Mountpoint": self.store.mountpoint(record),
                    "CreatedAt": record.created_at,
                    "Status": self._status(volume, record),
                }
        except OSError as exc:
            raise Unreadable(f"volume {printable(name)} cannot be looked at: {in_words(exc)}") from exc

    def _status(self, volume: int, record: Record) -> dict[str, Any]:
        status: dict[str, Any] = {"uid": None, "gid": None, "mode": None, "label": None}
        status |= {
            "options": dict(record.given),
            "ready": False,
            "drift": [],
            "warnings": list(self._warnings(record)),
        }
        if record.resolved:
            status["resolved"] = {key: int(value) for key, value in record.resolved.items()}
        progress = read_mark(volume)
        if running := self.passes.running(record.name):
            status["progress"] = asdict(running.progress)
        elif progress is not None and self.passes.runs_elsewhere(record.name):
            status["progress"] = asdict(progress)
        try:
            data = self.store.open_data(volume, record)
        except (NotReady, NotAllowed) as exc:
            status["warnings"].append(str(exc))
            return status
        with fds.held(data):
            want = Want.of(record.options, self.labels, adopted=record.adopted, narrowed=record.narrowed)
            found = Found.at(data, self.labels)
            changes = plan(found, want, self.labels)
            status |= {"uid": found.uid, "gid": found.gid, "mode": str(found.mode), "label": found.label}
            status["drift"] = [f"{c.what} is {c.old}, declared {c.new}" for c in changes]
            status["ready"] = not changes and progress is None
            if want.label is not None and found.device in self.labels.unlabelled:
                status["warnings"].append(f"the file system keeps no labels: {want.label} is not applied")
            elif (label := want.label or found.label) and (refusal := self.labels.refusal(label)):
                status["warnings"].append(refusal)
            if record.options.path is not None and want.recurse is Recurse.NEVER:
                status["warnings"] += _foreign(data, want)
        return status

    def _warnings(self, record: Record) -> Iterator[str]:
        label = record.options.label
        if label is not None and label.type and not self.labels.applied:
            yield f"label {label} is recorded but not applied: SELinux is off on this host"
        if record.taken_up:
            yield f"taken up again on {record.taken_up} from the data that an earlier remove had retained"
        yield from record.left_alone


def _merge(record: Record, given: Mapping[str, str], unset: tuple[str, ...], resolved: Mapping[str, str]) -> Record:
    """*record* with the options *given* over its own and without those *unset*.

    Args:
        resolved: what was found in the image of *given*; an image that stays keeps what was found when it was given.

    Raises:
        Invalid: the result is contradictory.
        Conflict: its path would be another.
    """
    merged = {key: value for key, value in _over(record.given, given, unset).items() if key not in unset}
    if "image" not in merged or ("image" in given and "at" not in given):
        merged.pop("at", None)  # it says where in that image
    if "image" not in given:
        resolved = record.resolved if "image" in merged else {}
        if merged.get("at") != record.given.get("at") and "image" in merged:
            raise Invalid("at cannot be unset by itself", hint="give image again, without at")
    changed = record.with_options(merged, resolved)
    if changed.options.path != record.options.path:
        raise Conflict(
            f"the path of volume {record.name} cannot be changed",
            hint="remove the volume (its path directory stays) and create it with the new path",
        )
    return changed


def _over(kept: Mapping[str, str], given: Mapping[str, str], unset: tuple[str, ...] = ()) -> dict[str, str]:
    """The options *given*, and those *kept* that they leave; path goes by two names, in *unset* too."""
    if not {"path", ALIAS}.isdisjoint({*given, *unset}):
        kept = {key: value for key, value in kept.items() if key != path_key(kept)}
    return {**kept, **given}


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
    return [f"{foreign} of the first {looked} entries are not owned by {owner}; recurse=mismatch would mend them"]
