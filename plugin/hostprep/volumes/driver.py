"""The verbs of a volume driver, each idempotent. Knows neither HTTP nor terminals: the wire and the command line do.

A caller gives a *deadline* on the clock of time.monotonic(): the moment at which it wants an answer, whatever it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ..errors import Busy, Conflict, HostprepError, Invalid, NoSuchVolume, NotAllowed, Unreadable, in_words, printable
from ..host import fds, mountinfo, rootless
from ..host.labels import Labels
from ..host.paths import is_below, overlap
from ..host.uses import uses
from ..options import KNOWN, Name, check_name, from_podman
from ..settings import Settings
from ..tree.process import Progress
from . import create, pins, status, trash
from .declaration import Asks, Declaration, Images, Resolver, no_engine
from .foreign import Foreign
from .listing import Lister, Listing
from .readiness import Readiness, Repaired
from .record import Record
from .store import Store, no_retained
from .volume import RECORD, RETAINED, Identity

log = logging.getLogger("hostprep")

_KEPT: Final = "/kept/"  # before a name, a lock; with a slash, so no volume's name


class Driver:
    """The volumes of one root. One object serves every thread."""

    def __init__(self, settings: Settings, store: Store, labels: Labels, images: Images | None = None) -> None:
        self.settings = settings
        self.store = store
        self.labels = labels
        self.resolver = Resolver(images, settings)
        self.readiness = Readiness(store, labels)
        self.passes = self.readiness.passes
        self.removed = threading.Event()
        """Set when something went to the trash that is to be purged at once."""
        self.created = threading.Event()
        """Set when a volume was made, which an engine may record a moment later."""
        self._lister = Lister(store)
        self._foreign = Foreign()
        # When each name was removed. The trash does not tell that of what is purged already, nor this after a restart.
        self._removed: dict[str, float] = {}
        self._guard = threading.Lock()  # of _removed: two Removes would overwrite each other's note
        self._trash = trash.Names(store)

    @classmethod
    def open(cls, settings: Settings, *, create: bool, images: Images | None = None) -> Driver:
        """Open the root and the labels of this host. Without *images* the option `image` is refused.

        Raises:
            BadSetting: one of them cannot be used.
        """
        labels = Labels.open(settings.selinux, managed=settings.managed)
        return cls(settings, Store.open_root(settings, create=create), labels, images)

    # -- what changes a volume -------------------------------------------------------------------------------------

    def create(self, name: str, given: Mapping[str, str], deadline: float, asks: Asks = no_engine) -> None:
        """Make the volume *name*. If it exists, confirm it where the options are equal or none are given.

        Raises:
            Invalid: the name or an option is malformed, or whose ids are meant cannot be told; nothing was touched.
            Conflict: it exists with other options, or its path is another volume's.
            NotAllowed: its path is not allowed, or unsafe; or nobody can be asked about images here.
            NoEngine, NoImage: the image is not there, or does not say its ids; or no engine answers.
        """
        create.create(self.readiness, self.resolver, self._trash, check_name(name), from_podman(given), deadline, asks)
        self.created.set()

    def apply(
        self,
        name: str,
        given: Mapping[str, str],
        unset: tuple[str, ...],
        deadline: float,
        *,
        accept_data: bool = False,
    ) -> Record:
        """Change options in place, which engines cannot. The next Mount makes the volume so.

        Args:
            accept_data: the directory that is there now is the volume's, although another was before.

        Raises:
            Invalid: as for Create.
            Conflict: `path` would change, or the data to be accepted is another volume's.
            NoSuchVolume: there is none.
            NotReady: no directory is there to be accepted.
            NotAllowed, NoEngine, NoImage: as for Create. An image is looked into again whenever it is given.
        """
        name, asked = check_name(name), Declaration(given)
        for key in unset:
            if key not in KNOWN:
                raise Invalid(f'unknown option "{printable(key)}"', hint=f"known are {', '.join(KNOWN)}")
        if asked.options.image is not None:
            with self.store.open(name):  # no engine is asked for a volume that is not there
                pass
        create.check_host_ids(self.settings, asked.options)
        asked = self.resolver.resolve(asked, deadline)
        if "userns" in {*given, *unset}:
            asked = self.resolver.mapped(asked)
        with self.store.locked(name, deadline) as volume:
            changed = volume.record.changed(asked, unset)
            rootless.check_ids(changed.options.uid, changed.options.gid)
            if changed.options.label is not None:
                self.labels.check(changed.options.label)
            if changed.idmap is not None and changed.idmap != volume.record.idmap:
                with volume.open_data(as_mount=True) as data:
                    pins.check(data, changed.idmap)
            with contextlib.ExitStack() as claim:
                # Something may have been mounted there since it was made; another volume may have the same directory.
                if changed.options.path is not None and (accept_data or not changed.wants_as(volume.record)):
                    claim.enter_context(self.store.claim(changed.options.path, name, deadline, sharing=changed))
                if accept_data:
                    changed = replace(changed, data=volume.look_at_data())
                self.passes.cancel(name)
                if changed.idmap != volume.record.idmap:  # a look at the mount does not always tell its map
                    volume.release()
                volume.write(changed)
        return changed

    @contextlib.contextmanager
    def kept(self, name: str, deadline: float) -> Iterator[Mapping[str, str]]:
        """Have a Remove leave the volume as it is, and lend the options that it has meanwhile, as Status shows them.

        At the end these are what they were before. But if it ends with another error than a Conflict, or is killed, a
        Remove may still come: the volume then keeps `on_remove=retain`. The volume's own lock is not held.

        Raises:
            NoSuchVolume, Busy: as for apply.
        """
        name = check_name(name)
        with self.store.lock(_KEPT + name, deadline):
            with self.store.locked(name, deadline) as volume:
                before, identity = volume.record, volume.identity
                if not before.options.retains:
                    volume.write(before.changed(Declaration({"on_remove": "retain"})))
                meanwhile = volume.record.given
            given = {key: value for key, value in before.given.items() if key == "on_remove"}
            declared, unset = Declaration(given), () if given else ("on_remove",)
            try:
                yield meanwhile
            except Conflict:
                self._give_back(name, identity, declared, unset)
                raise
            self._give_back(name, identity, declared, unset)

    def _give_back(self, name: Name, identity: Identity, declared: Declaration, unset: tuple[str, ...]) -> None:
        end = time.monotonic() + 10
        with contextlib.suppress(NoSuchVolume), self.store.locked(name, end) as volume:
            if volume.identity == identity:
                volume.write(volume.record.changed(declared, unset))

    def remove(self, name: str, deadline: float) -> None:
        """Take the volume away: to the trash, or only its record where the data is to stay.

        Raises:
            NoSuchVolume: there is none, and hostprep removed none of that name within the last minute.
        """
        name = check_name(name)
        try:
            with self.store.locked(name, deadline) as volume:
                if self.store.is_locked(_KEPT + name):
                    log.warning("%s is not removed: an engine is to record its options anew", name)
                    return
                self.passes.cancel(name)
                self.readiness.forget(volume)
                volume.release()
                if volume.record.options.retains:
                    volume.retain()
                    log.info("retained the data of %s", name)
                else:
                    log.info("moved %s to the trash as %s", name, trash.discard(self.store, name, volume.fd))
                now = time.monotonic()
                with self._guard:
                    lately = {n: at for n, at in self._removed.items() if now - at < trash.RECENT}
                    self._removed = lately | {name: now}
        except NoSuchVolume:
            known = time.monotonic() - self._removed.get(name, -trash.RECENT) < trash.RECENT
            if not known and not self._trash.removed_lately(name):
                raise
            self.store.sync(name)
            return
        if self.settings.trash_keep == 0:
            self.removed.set()

    def users(self, name: str) -> list[str]:
        """Who has the volume *name*, or the retained data of that name, mounted: a phrase for each."""
        name = check_name(name)
        place = f"{self.store.root}/volumes/{name}"
        with contextlib.ExitStack() as stack:
            try:
                fd = stack.enter_context(self.store.directory(name))
            except NoSuchVolume:
                return []
            with contextlib.suppress(HostprepError, OSError):  # damaged, or its `path` is not there
                volume = stack.enter_context(self.store.open(name))
                if volume.record.options.path:
                    fd, place = stack.enter_context(volume.open_data(as_mount=True)), volume.place
            found = uses(fd, place).found
        # Not a disk of its own that is mounted at a `path`, nor what is answered instead of it, for another volume of
        # the directory, too. But a container counts that has the volume at the same path inside.
        return [
            use.who
            for use in found
            if not (use.same_root and use.point == place)
            and not os.path.dirname(use.point).endswith(f"{self.store.root}/mounts")
        ]

    def discard_retained(self, name: str, deadline: float) -> None:
        """Move retained data to the trash, even where its record is damaged.

        Raises:
            NoSuchVolume: none of that name is retained.
        """
        name = check_name(name)
        with self.store.lock(name, deadline), self.store.directory(name) as directory:
            if fds.exists(directory, RECORD) or not fds.exists(directory, RETAINED):
                raise no_retained(name)
            trash.discard(self.store, name, directory)

    def restore(self, name: str, *, entry: str | None, new_name: str | None, deadline: float) -> Record:
        """Bring a removed volume back; see trash.restore."""
        wanted = check_name(new_name or name)
        return trash.restore(self.store, check_name(name), entry=entry, new_name=wanted, deadline=deadline)

    def purge(self, ids: list[str] | None) -> trash.Purge:
        """Delete removed volumes for good; see trash.purge for what it raises.

        Args:
            ids: which; all for None, what is due if empty.
        """
        if ids:
            return trash.purge(self.store, ids)
        done = trash.end_purges(self.store)
        if ids is None:
            return done + trash.purge(self.store, [each.id for each in trash.entries(self.store)], insist=False)
        return done + trash.purge_due(self.store)

    # -- readiness ---------------------------------------------------------------------------------------------------

    def mount(
        self, name: str, deadline: float, *, mount: str = "", engine: int | None = None, asks: Asks = no_engine
    ) -> str:
        """Make the volume right, whatever was done to it, and return where it is.

        Args:
            mount: what the engine calls this Mount; empty where none asks.
            engine: the process that will open the answer; 0 if it cannot be seen from here; None if no process will,
                and then no bind mount is made.
            asks: as for `get`; what it says of another engine's volume goes to the log.

        Raises:
            NoSuchVolume, Unreadable, NotReady, NotAllowed: there is nothing to mount.
            Busy: a pass over its tree takes longer than *deadline*; it goes on, and the next Mount joins it.
        """
        name = check_name(name)
        if self.settings.managed:
            self._check_mounts(name)
        with contextlib.suppress(Unreadable):
            if record := self.store.find(name):
                for line in status.of_another_engine(record, self.resolver, asks):
                    log.warning("mount of %s: %s", name, line)
        return self.readiness.ensure(name, deadline, mount=mount, engine=engine)

    def repair(
        self, name: str, *, dry_run: bool = False, report: Callable[[Progress], None] = lambda progress: None
    ) -> Repaired:
        """Give everything in the volume the declared owner and label, now; see Readiness.repair."""
        return self.readiness.repair(check_name(name), dry_run=dry_run, report=report)

    def _check_mounts(self, name: Name) -> None:
        """Refuse a mount below the managed plugin's directory.

        The engine sees a propagated copy of it. When it unmounts that, with the plugin, the original can go, too.
        """
        root, within = self.settings.root, f"{self.settings.root}/volumes/{name}"
        for mount in mountinfo.mount_table():
            if is_below(mount.point, root) and overlap(mount.point, within):
                raise NotAllowed(
                    f"{printable(mount.point)} is a mount: the engine could unmount it, on the host too, together with "
                    "the managed plugin",
                    hint="mount the disk at /var/lib/hostprep itself, or install hostprep on the host: make install",
                )

    def unmount(self, name: str, deadline: float, *, mount: str = "") -> None:
        """Make the volume right again: copy-up may just have ended. What prevents it is logged, not raised."""
        try:
            self.readiness.ensure(check_name(name), deadline, mount=mount, unmount=True)
        except (NoSuchVolume, Busy) as exc:
            log.info("unmount of %s: %s", printable(name), exc)
        except (HostprepError, OSError) as exc:
            log.warning("unmount of %s: %s", printable(name), printable(in_words(exc)))

    # -- what only reads ---------------------------------------------------------------------------------------------

    def volumes(self) -> Listing:
        """Every volume and its mountpoint, None where the record is damaged.

        Raises:
            Unreadable: the root cannot be read.
        """
        return self._lister.volumes()

    def removed_volumes(self) -> list[dict[str, Any]]:
        """What restore can bring back, the newest first, and what purges have begun to delete."""
        restorable, deleted = trash.entries(self.store), trash.being_deleted(self.store)
        used = trash.in_use(self.store, [entry.id for entry in restorable])
        state = {entry: f"not to be purged: {who}" for entry, who in used.items()}
        state |= {entry.id: f"partly purged; in the way: {entry.left or 'not known yet'}" for entry in deleted}
        return [
            {
                "id": entry.id,
                "name": entry.record.name if entry.record else None,
                "removed_at": entry.removed_at,
                "options": dict(entry.record.given) if entry.record else None,
                "state": state.get(entry.id, "restorable"),
            }
            for entry in [*restorable, *deleted]
        ]

    def retained_volumes(self) -> list[dict[str, Any]]:
        """What a Create of the same name makes a volume again."""
        found = []
        for name in self.store.names():
            with contextlib.suppress(NoSuchVolume, Unreadable), self.store.retained(name) as volume:
                created, options = volume.record.created_at, dict(volume.record.given)
                found.append({"name": name, "mountpoint": volume.place, "created_at": created, "options": options})
        return found

    def path(self, name: str) -> str:
        """Where the volume *name* is, whether or not it is ready."""
        with self.store.open(check_name(name)) as volume:
            return volume.mountpoint

    def get(self, name: str, asks: Asks = no_engine) -> dict[str, Any]:
        """The volume *name* as Get answers it, Status included.

        Args:
            asks: tells of the engine for whose containers it is looked at.

        Raises:
            NoSuchVolume: there is definitely none. No volume has a malformed name.
            Unreadable: in any doubt, and then nothing may be answered.
        """
        try:
            name = check_name(name)
        except Invalid as exc:
            raise NoSuchVolume(exc.message, hint=exc.hint) from None
        try:
            with self.store.open(name) as volume:
                answer = status.answer(volume, self.labels, self.passes, self._foreign)
                answer["Status"]["warnings"] += status.of_another_engine(volume.record, self.resolver, asks)
                return answer
        except OSError as exc:
            raise Unreadable(f"volume {name} cannot be looked at: {in_words(exc)}") from exc
