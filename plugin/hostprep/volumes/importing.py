"""`hostprep import`: volumes that other drivers made become hostprep's, where they are or moved here, data and all."""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import Conflict, HostprepError, Invalid, NoSuchVolume, NotAllowed, NotReady, in_words, printable
from ..host import fds, mountinfo
from ..host.paths import is_engine_volume, overlap, system_directory
from ..options import ALIAS, Options, check_name, differences, parse_path
from ..tree.plan import Change, Found, Want, plan
from .driver import Driver
from .record import Record, rfc3339
from .store import DATA, PATHS, RECORD, Store

log = logging.getLogger("hostprep")

_LIMIT = 16 * 1024 * 1024  # bytes of a state file


class Outcome(enum.Enum):
    """What became of one volume of a state file, or would."""

    IMPORTED = "imported"
    THERE = "there already"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Step:
    """One volume of a state file. *why* says what was in the way."""

    name: str
    path: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A directory that became a volume's, or would, and what of it is not as declared."""

    source: str
    place: str
    changes: list[Change] = field(default_factory=list)


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
    with fds.held(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid(f"{printable(file)} is not a file")
        with open(fd, "rb", closefd=False) as stream:
            text = stream.read(_LIMIT + 1)
    try:
        if len(text) > _LIMIT:
            raise ValueError(f"it is longer than {_LIMIT} bytes")
        found = json.loads(text, object_pairs_hook=_no_repeats)
        if not isinstance(found, dict) or found.keys() != {"state"}:
            raise ValueError('it is no object with "state" alone')
        state = {} if found["state"] is None else found["state"]
        if not isinstance(state, dict) or not all(isinstance(path, str) for path in state.values()):
            raise ValueError("its state is no object of strings")
    except (ValueError, RecursionError) as exc:
        raise Invalid(
            f"{printable(file)} is not local-persist's: {printable(str(exc))}",
            hint="it writes /var/lib/docker/plugin-data/local-persist.json",
        ) from None
    return {name: _one_spelling(path) for name, path in state.items()}


def from_local_persist(
    driver: Driver, state: Mapping[str, str], given: Mapping[str, str], deadline: Callable[[], float], *, dry_run: bool
) -> Iterator[Step]:
    """Make a volume by `path` of each in *state*, all with the options *given*, and tell of each as it is done.

    The directories stay where they are. What is in the way of one is in the way of no other.

    Args:
        deadline: the moment by which a Create that begins now is to have answered.
        dry_run: change nothing. The engine is not asked about an `image` then.

    Raises:
        Invalid: the options are malformed, or have a path of their own. Nothing has been touched.
    """
    _check_options(driver, given)
    claimed: dict[str, str] = {}
    for name, path in sorted(state.items()):
        pairs = {**given, "path": path}
        try:
            there = _look(driver, name, path, pairs, claimed)
            if not there and not dry_run:
                driver.create(name, pairs, deadline())
        except (HostprepError, OSError) as exc:
            yield Step(name, path, Outcome.REFUSED, in_words(exc))
            continue
        claimed[path] = name
        yield Step(name, path, Outcome.THERE if there else Outcome.IMPORTED)


def _look(driver: Driver, name: str, path: str, pairs: Mapping[str, str], claimed: Mapping[str, str]) -> bool:
    """Whether the volume *name* is there already, just so; else check, changing nothing, that it could be."""
    check_name(name)
    Options.parse(pairs)
    store = driver.store
    try:
        differing = differences(store.read(name).given, pairs)
    except NoSuchVolume:
        if name in store.names():
            raise Conflict(f"a volume {name} is retained", hint="hostprep create takes it up again") from None
    else:
        if differing:
            raise Conflict(f"volume {name} exists with other options: {'; '.join(differing)}")
        return True
    store.check_claim(path, name=name)
    for other, owner in claimed.items():  # in a dry run they are no volumes yet
        if overlap(path, other):
            raise Conflict(f"{printable(path)} is, contains or lies in {printable(other)}, which is {owner}'s")
    # Create makes a missing directory; here that would paper over an unmounted disk.
    try:
        parent, last = store.open_parent(path, trusted=False)
        with fds.held(parent):
            os.close(fds.open_step(parent, last, path))
    except FileNotFoundError as exc:
        raise _missing(str(exc.filename)) from None
    return False


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


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
    """Make *directory*, data and all, the volume *name*, by one rename.

    The record is made first, durably: a crash leaves the directory where it was, and a volume without data, which
    the same import completes; or all of it. Nothing is copied. Owner, mode and label follow at the next Mount.

    Who has the directory mounted is looked for in every process's mounts; see mountinfo.uses for what that misses.

    Args:
        dry_run: change nothing. The engine is not asked about an `image` then.

    Raises:
        Invalid: the name or an option is malformed.
        Conflict: there is a volume of that name, or one that has the directory; or the directory is in use.
        NotAllowed: a system directory, a symlink on the way, a mount point, another file system, or below a directory
            in which somebody other than root could put another in its place.
        NotReady: it does not exist.
        NoImage, Busy: as for Create.
    """
    check_name(name)
    options = _check_options(driver, given)
    directory, store = parse_path(directory, key="from"), driver.store
    _check_place(directory, store.root)
    resolved: Mapping[str, str] = {}
    if not dry_run:
        resolved = driver.resolve(options, deadline)
        options = Options.parse({**resolved, **given})
    with contextlib.ExitStack() as stack:
        if not dry_run:
            for lock in (f"create/{name}", name, PATHS):
                stack.enter_context(store.lock(lock, deadline))
        begun = _begun(store, name, given)
        store.check_claim(directory, name=name)
        parent, last, data = _open(directory, stack)
        _check_movable(store, directory, parent, data)
        found, want = Found.at(data, driver.labels), Want.of(options, driver.labels, adopted=False)
        move = Move(directory, f"{store.root}/volumes/{name}/{DATA}", plan(found, want, driver.labels))
        if dry_run:
            return move
        if not begun:
            record = Record(name, dict(given), rfc3339(), imported=True, resolved=dict(resolved))
            new, temporary = stack.enter_context(store.new(deadline))
            fds.write_file(new, RECORD, record.to_json(), durable=True)
            store.appear(temporary, name)
        with store.volume(name) as volume:
            try:
                os.rename(last, DATA, src_dir_fd=parent, dst_dir_fd=volume)
            except OSError as exc:
                store.disappear(name)
                if exc.errno == errno.EXDEV:  # XFS between project quotas, too
                    raise _elsewhere(store, directory) from None
                raise
            os.fsync(volume)
            os.fsync(parent)
    log.info("moved %s to %s", printable(directory), move.place)
    return move


def _check_options(driver: Driver, given: Mapping[str, str]) -> Options:
    for key in ("path", ALIAS):
        if key in given:
            raise Invalid(f"option {key} is what import finds out itself", hint=f"leave {key} out")
    options = Options.parse(given)
    if options.label is not None:
        driver.labels.check(options.label)
    return options


def _check_place(directory: str, root: str) -> None:
    """Refuse what nobody can have meant: system directories, an engine's own, hostprep's root."""
    if is_engine_volume(directory):
        touched = root if overlap(os.path.realpath(directory), root) else None
    else:
        touched = system_directory(directory, root)
    if touched:
        raise NotAllowed(
            f"{printable(directory)} is, contains or lies in {touched}",
            hint="of an engine's directories only volumes/NAME/_data can be taken over",
        )


def _begun(store: Store, name: str, given: Mapping[str, str]) -> bool:
    """Whether an import of *name* was interrupted before its data came; the record is there then.

    Raises:
        Conflict: there is another volume of that name.
    """
    if name not in store.names():
        return False
    with contextlib.suppress(NoSuchVolume), store.volume(name) as volume:
        record = store.record(volume, name)
        if record.imported and not fds.exists(volume, DATA):
            if differing := differences(record.given, given):
                raise Conflict(
                    f"an import of {name} was interrupted, with other options: {'; '.join(differing)}",
                    hint=f"give the same options, or hostprep rm {name} first",
                )
            return True
    raise Conflict(f"a volume {name} exists, or is retained", hint="import under another name")


def _open(directory: str, stack: contextlib.ExitStack) -> tuple[int, str, int]:
    """The directory above, open until *stack* ends, the last component, and the directory itself, likewise."""
    above, last = os.path.split(directory)
    try:
        os.close(fds.walk(directory, trusted=True))
        parent = stack.enter_context(fds.held(fds.walk(above, trusted=False)))
        return parent, last, stack.enter_context(fds.held(fds.open_below(parent, last, directory=True)))
    except FileNotFoundError:
        raise _missing(directory) from None
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        raise NotAllowed(
            f"{printable(directory)} is a mount point", hint="its data is on another file system: keep it with path"
        ) from None


def _check_movable(store: Store, directory: str, parent: int, data: int) -> None:
    # Docker writes it where a volume has options (seen in tests/engine), wherever its data-root is.
    if os.path.basename(directory) == DATA and fds.exists(parent, "opts.json"):
        raise NotAllowed(
            f"the volume of {printable(directory)} was made with options of Docker's local driver",
            hint="what it mounts there, or limits, would not come along: see docker volume inspect",
        )
    with store.part("volumes") as volumes:
        # rename(2) does not go from one mount to another either, though it be of the same file system.
        if os.fstat(data).st_dev != os.fstat(volumes).st_dev or fds.mount_id(parent) != fds.mount_id(volumes):
            raise _elsewhere(store, directory)
    if used := mountinfo.uses(data, directory):
        raise Conflict(f"{printable(directory)} is in use: {printable(used[0])}", hint="stop its containers first")


def _elsewhere(store: Store, directory: str) -> NotAllowed:
    return NotAllowed(
        f"{printable(directory)} and {store.root} are not on one file system, and import copies nothing",
        hint="keep it where it is with path; or make a volume, and cp -a what is in it while nothing uses it",
    )


def _missing(path: str) -> NotReady:
    return NotReady(f"{printable(path)} does not exist", hint="is its disk mounted?")
