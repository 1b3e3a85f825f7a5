"""`hostprep import`: volumes of other drivers become hostprep's, with their data, in place or moved here."""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import Conflict, HostprepError, Invalid, NoSuchVolume, NotAllowed, NotReady, in_words, printable
from ..host import fds, rootless
from ..host.paths import overlap
from ..host.system import check_no_engine, engine_data, is_engine_volume, system_directory
from ..host.uses import uses
from ..options import ALIAS, Name, check_name, parse_path
from ..tree.plan import Change, Plan, Want
from . import pins
from .create import check_host_ids
from .declaration import Declaration
from .driver import Driver
from .record import WITHIN, Record, no_repeats, rfc3339
from .store import LockedName, Store
from .volume import DATA, open_parent

log = logging.getLogger("hostprep")

_LIMIT = 16 * 1024 * 1024  # bytes of a state file
_STOP: Final = "stop whoever uses it first"


class Outcome(enum.Enum):
    """What happened to one volume of a state file, or would happen."""

    IMPORTED = "imported"
    THERE = "there already"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Step:
    """One volume of a state file. *why* says what prevented it."""

    name: str
    path: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A directory that became the data of a volume, or would, and how it differs from what is declared."""

    source: str
    place: str
    changes: tuple[Change, ...] = ()


# -- local-persist -----------------------------------------------------------------------------------------------------


def read_local_persist(file: str) -> dict[str, str]:
    """The mountpoint of each volume in local-persist's state file.

    It is `{"state": {"name": "mountpoint", …}}`, or null for none: github.com/MatchbookLab/local-persist, driver.go,
    saveState.

    Raises:
        Invalid: it is something else.
        OSError: it cannot be read.
    """
    # O_NONBLOCK: a FIFO in its place must not hang the open.
    with fds.closing(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid(f"{printable(file)} is not a file")
        with open(fd, "rb", closefd=False) as stream:
            text = stream.read(_LIMIT + 1)
    try:
        if len(text) > _LIMIT:
            raise ValueError(f"it is longer than {_LIMIT} bytes")
        found = json.loads(text, object_pairs_hook=no_repeats)
        if not isinstance(found, dict) or found.keys() != {"state"}:
            raise ValueError('it is no object with "state" alone')
        state = {} if found["state"] is None else found["state"]
        if not isinstance(state, dict) or not all(isinstance(path, str) for path in state.values()):
            raise ValueError("its state is no object of strings")
    except (ValueError, RecursionError) as exc:
        why = f"{printable(file)} is not local-persist's: {printable(str(exc))}"
        raise Invalid(why, hint="it writes /var/lib/docker/plugin-data/local-persist.json") from None
    return {name: _one_spelling(path) for name, path in state.items()}


def from_local_persist(
    driver: Driver, state: Mapping[str, str], given: Mapping[str, str], deadline: Callable[[], float], *, dry_run: bool
) -> Iterator[Step]:
    """Make each directory in *state* a volume by `path` with the options *given*, and yield each when it is done.

    The directories stay where they are. What prevents one prevents no other.

    Args:
        deadline: gives the moment by which a Create that begins now has to answer.
        dry_run: change nothing. The engine is not asked about an `image` then.

    Raises:
        Invalid: the options are malformed, or have a path of their own. Nothing has been touched.
    """
    _declare(driver, given)
    claimed: dict[str, str] = {}
    for name, path in sorted(state.items()):
        pairs = {**given, "path": path}
        try:
            there = _check(driver.store, check_name(name), path, Declaration(pairs), claimed)
            if not there and not dry_run:
                driver.create(name, pairs, deadline())
        except (HostprepError, OSError) as exc:
            yield Step(name, path, Outcome.REFUSED, in_words(exc))
            continue
        claimed[path] = name
        yield Step(name, path, Outcome.THERE if there else Outcome.IMPORTED)


def _check(store: Store, name: Name, path: str, declared: Declaration, claimed: Mapping[str, str]) -> bool:
    """Whether the volume *name* is there already, as declared. Otherwise check that it could be made."""
    if (existing := store.find(name)) is not None:
        if differing := existing.declared.differences(declared.given):
            raise Conflict(f"volume {name} exists with other options: {'; '.join(differing)}")
        return True
    if name in store.names():
        raise Conflict(f"a volume {name} is retained", hint="hostprep create takes it up again")
    store.check_claim(path, name)
    for other, owner in claimed.items():  # in a dry run they are no volumes yet
        if overlap(path, other):
            raise Conflict(f"{printable(path)} is, contains or lies in {printable(other)}, which is {owner}'s")
    # Create makes a missing directory. Here that would hide an unmounted disk.
    try:
        with open_parent(store.settings, path) as (parent, last, _):
            os.close(fds.open_step(parent, last, path))
        check_no_engine(path, store.root)
    except FileNotFoundError as exc:
        raise _missing(str(exc.filename)) from None
    return False


def _one_spelling(path: str) -> str:
    """*path* without `//`, `/./` and `/` at the end, which local-persist kept as they were given.

    `..` stays, and is refused later: where it leads depends on links.
    """
    if not path.startswith("/"):
        return path
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


# -- a directory -------------------------------------------------------------------------------------------------------


def from_directory(
    driver: Driver, name: str, directory: str, given: Mapping[str, str], deadline: float, *, dry_run: bool
) -> Move:
    """Make *directory*, with what is in it, the data of a new volume *name*, by one rename.

    Nothing is copied. The record is made first, durably: a crash leaves all as it was, or all done, or a volume without
    data beside the directory, which the same import completes. The next Mount sets owner, mode and label.

    Every process's mounts are searched for the directory; see uses.uses for what that misses.

    Args:
        dry_run: change nothing. The engine is not asked about an `image` then.

    Raises:
        Invalid: the name or an option is malformed.
        Conflict: there is a volume of that name, or one that has the directory; or the directory is in use.
        NotAllowed: a system directory, a symlink on the way, a mount point, another file system, or below a directory
            in which somebody other than root could put another in its place.
        NotReady: it does not exist.
        NoEngine, NoImage, Busy: as for Create.
    """
    name = check_name(name)
    declared = _declare(driver, given)
    directory, store = parse_path(directory, key="from"), driver.store
    _check_place(directory, store.root)
    place = f"{store.root}/volumes/{name}/{DATA}"
    with contextlib.ExitStack() as stack:
        locked = None
        if not dry_run:
            declared = driver.resolver.resolve(declared, deadline)
            stack.enter_context(store.lock(f"create/{name}", deadline))
            locked = stack.enter_context(store.name_lock(name, deadline))
        declared = driver.resolver.mapped(declared)
        rootless.check_ids(declared.options.uid, declared.options.gid)
        begun = _begun(store, name, given)
        store.check_claim(directory, name)
        parent, last, data = _open(directory, stack)
        _check_movable(store, directory, parent, data)  # among others, that it is on the root's disk
        if not dry_run:
            stack.enter_context(store.claim(directory, name, deadline))
        want = Want.of(declared.on_disk, driver.labels, adopted=False)
        move = Move(directory, place, Plan.of(data, want, driver.labels).changes)
        if declared.idmap is not None:
            pins.check(data, declared.idmap)
        if locked is None:
            return move
        if not begun:
            record = Record(name, declared, rfc3339(), imported=True, data=WITHIN)
            with locked.new(record, deadline) as new:
                new.write_record()
                new.publish()
        _move(store, locked, directory, parent, last)
    log.info("moved %s to %s", printable(directory), place)
    return move


def _move(store: Store, locked: LockedName, directory: str, parent: int, last: str) -> None:
    with locked.open() as volume:
        try:
            os.rename(last, DATA, src_dir_fd=parent, dst_dir_fd=volume.fd)
        except OSError as exc:
            volume.withdraw()
            if exc.errno == errno.EXDEV:  # XFS between project quotas, too
                raise _elsewhere(store, directory) from None
            raise
        os.fsync(volume.fd)
        os.fsync(parent)


def _declare(driver: Driver, given: Mapping[str, str]) -> Declaration:
    for key in ("path", ALIAS):
        if key in given:
            raise Invalid(f"option {key} is what import finds out itself", hint=f"leave {key} out")
    declared = Declaration(given)
    check_host_ids(driver.settings, declared.options)
    if declared.options.label is not None:
        driver.labels.check(declared.options.label)
    return declared


def _check_place(directory: str, root: str) -> None:
    """Refuse system directories, an engine's own, and hostprep's root."""
    if is_engine_volume(directory):
        touched = root if overlap(directory, root) else None
    else:
        touched = system_directory(directory, root) or engine_data(directory, root)
    if touched:
        why = f"{printable(directory)} is, contains or lies in {printable(touched)}"
        raise NotAllowed(why, hint="of an engine's directories only volumes/NAME/_data can be taken over")


def _begun(store: Store, name: Name, given: Mapping[str, str]) -> bool:
    """Whether an import of *name* was interrupted before its data came. Its record is there then.

    Raises:
        Conflict: there is another volume of that name.
    """
    if name not in store.names():
        return False
    with contextlib.suppress(NoSuchVolume), store.open(name) as volume:
        if volume.record.imported and not fds.exists(volume.fd, DATA):
            if differing := volume.record.declared.differences(given):
                why = f"an import of {name} was interrupted, with other options: {'; '.join(differing)}"
                raise Conflict(why, hint=f"give the same options, or hostprep rm {name} first")
            return True
    raise Conflict(f"a volume {name} exists, or is retained", hint="import under another name")


def _open(directory: str, stack: contextlib.ExitStack) -> tuple[int, str, int]:
    """Open the directory above *directory*, and itself, until *stack* ends. Between the two: its last component."""
    above, last = os.path.split(directory)
    try:
        os.close(fds.walk(directory, trusted=True))
        parent = stack.enter_context(fds.closing(fds.walk(above, trusted=False)))
        return parent, last, stack.enter_context(fds.closing(fds.open_below(parent, last, directory=True)))
    except FileNotFoundError:
        raise _missing(directory) from None
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        why = f"{printable(directory)} is a mount point"
        raise NotAllowed(why, hint="its data is on another file system: keep it with path") from None


def _check_movable(store: Store, directory: str, parent: int, data: int) -> None:
    # Docker writes it where a volume has options (seen in tests/engine), wherever its data-root is.
    if os.path.basename(directory) == DATA and fds.exists(parent, "opts.json"):
        why = f"the volume of {printable(directory)} was made with options of Docker's local driver"
        raise NotAllowed(why, hint="its mounts and limits would be lost: see docker volume inspect")
    with store.part("volumes") as volumes:
        # rename(2) refuses to go from one mount to another, even of the same file system.
        if os.fstat(data).st_dev != os.fstat(volumes).st_dev or fds.mount_id(parent) != fds.mount_id(volumes):
            raise _elsewhere(store, directory)
    used = uses(data, directory)
    if used.found:
        raise Conflict(f"{printable(directory)} is in use: {printable(used.found[0].who)}", hint=_STOP)
    if used.doubt:
        raise NotAllowed(f"who uses {printable(directory)} cannot be told: {used.doubt}", hint=_STOP)


def _elsewhere(store: Store, directory: str) -> NotAllowed:
    return NotAllowed(
        f"{printable(directory)} and {store.root} are not on one file system, and import copies nothing",
        hint="keep it where it is with path; or make a volume, and cp -a the contents while nothing uses them",
    )


def _missing(path: str) -> NotReady:
    return NotReady(f"{printable(path)} does not exist", hint="is its disk mounted?")
