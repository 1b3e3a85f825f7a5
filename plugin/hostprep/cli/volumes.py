"""hostprep create, ls, status, apply, rm, restore, purge."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from ..errors import Conflict, HostprepError, Invalid, NoSuchVolume, NotReady, printable
from ..host.dockerd import of_running
from ..host.looking import look
from ..options import KNOWN
from ..settings import Settings
from ..tree.process import Progress
from ..volumes.driver import Driver
from . import output
from .shared import deadline, given_options, json_flag, make_ready, open_driver, pairs
from .telling import tell_engine

_of_running = functools.cache(of_running)
COLUMNS: Final = ["VOLUME", "OWNER", "MODE", "LABEL", "STATE", "MOUNTPOINT"]


@click.command(epilog=f"Driver options: {', '.join(KNOWN)}.")
@click.argument("name")
@given_options
@click.pass_obj
def create(settings: Settings, name: str, given: dict[str, str]) -> None:
    """Create a volume, as docker volume create -d hostprep does."""
    driver = open_driver(settings, given, create=True)
    driver.create(name, given, deadline(settings))
    print(name)
    tell_engine(settings, driver, name)


@click.command()
@click.option("--trash", "which", flag_value="trash", help="List removed volumes that can be restored.")
@click.option("--retained", "which", flag_value="retained", help="List volumes removed with on_remove=retain.")
@json_flag
@click.pass_obj
def ls(settings: Settings, *, which: str | None, as_json: bool) -> None:
    """List the volumes and their state."""
    driver = Driver.open(settings, create=False)
    if which is None:
        found, columns = list(_all(driver)), COLUMNS
        rows = [row(volume) for volume in found]
    else:
        found = driver.removed_volumes() if which == "trash" else driver.retained_volumes()
        columns = [key.upper() for key in (found[0] if found else ["name"])]
        rows = [list(map(str, entry.values())) for entry in found]
    if as_json:
        output.as_json(found)
    else:
        output.table(columns, rows)
    for volume in found if which is None else ():
        for warning in volume["status"]["warnings"] if volume["mountpoint"] is None else ():
            print(f"hostprep: {printable(warning)}", file=sys.stderr)


@click.command()
@click.argument("name")
@json_flag
@click.pass_obj
def status(settings: Settings, *, name: str, as_json: bool) -> None:
    """Show one volume as it is on disk now."""
    driver = Driver.open(settings, create=False)

    def one(name: str) -> dict[str, Any] | HostprepError:
        try:
            return _one(driver, name)
        except HostprepError as exc:
            return exc

    ((_, answers, volume),) = look([name], one)
    if not answers:
        raise NotReady(_hangs(name), hint="see the kernel's log: dmesg")
    if isinstance(volume, HostprepError):
        raise volume
    if as_json:
        output.as_json(volume)
    else:
        output.fields(lines(volume))


@click.command()
@click.argument("name")
@given_options
@click.option("--unset", multiple=True, metavar="KEY", help="Remove this option.")
@click.option("--no-wait", is_flag=True, help="Leave the repair to the next start of a container.")
@click.option("--accept-data", is_flag=True, help="The directory that is there now is the volume's data from now on.")
@click.pass_obj
def apply(
    settings: Settings, *, name: str, given: dict[str, str], unset: tuple[str, ...], no_wait: bool, accept_data: bool
) -> None:
    """Change options of a volume in place.

    An engine cannot do that. The data and all other options stay. The command ends when the volume is ready.

    A volume whose directory is not the one that it had, or is on another file system, is not mounted: its disk may be
    missing. If you have put the data there yourself, as from a backup, --accept-data says so.
    """
    if both := given.keys() & set(unset):
        raise Invalid(f"{min(both)} is both set and unset", hint="choose one of -o and --unset")
    driver = open_driver(settings, given, create=False)
    driver.apply(name, given, unset, deadline(settings), accept_data=accept_data)
    if no_wait:
        print(f"{name}: recorded; the next start of a container repairs the volume")
    else:
        make_ready(driver, name)
        print(name)
    tell_engine(settings, driver, name, changed=True)


@click.command()
@click.argument("name")
@click.option("--retained", is_flag=True, help="Move the data of a retained volume to the trash (see ls --retained).")
@click.option("--force", is_flag=True, help="Remove it although somebody has it mounted, who keeps what is mounted.")
@click.pass_obj
def rm(settings: Settings, *, name: str, retained: bool, force: bool) -> None:
    """Remove a volume; restore can bring it back.

    Its data can be restored until --trash-keep is over. With path or on_remove=retain the data stays where it is. A
    volume that is mounted is only removed with --force. No purge deletes its data before it is unmounted.
    """
    driver = Driver.open(settings, create=False)
    if not force and (users := driver.users(name)):
        hint = "stop its containers and unmount it; or --force: they keep what they have mounted"
        raise Conflict(f"volume {name} is in use: {printable(users[0])}", hint=hint)
    (driver.discard_retained if retained else driver.remove)(name, deadline(settings))
    print(name)


@click.command()
@click.argument("name")
@click.option("--id", "entry", metavar="ID", help="Its ID, as ls --trash lists it. Without: the newest of that name.")
@click.option("--as", "new_name", metavar="NEW", help="Restore it under this name.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", callback=pairs, help="Label for the engine to record."
)
@click.pass_obj
def restore(settings: Settings, *, name: str, entry: str | None, new_name: str | None, labels: dict[str, str]) -> None:
    """Bring a removed volume back, with its data."""
    driver = Driver.open(settings, create=False)
    restored = driver.restore(name, entry=entry, new_name=new_name, deadline=deadline(settings)).name
    print(restored)
    tell_engine(settings, driver, restored, labels)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Delete all removed volumes now.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.pass_obj
def purge(settings: Settings, *, everything: bool, ids: tuple[str, ...]) -> None:
    """Delete removed volumes for good.

    ls --trash lists the IDs. Without an ID, purge deletes what was removed longer than --trash-keep ago. It deletes no
    volume that is still mounted, or that may be. If something stays that it was to delete, it says why, and exits 1.
    """
    if everything and ids:
        raise Invalid("purge takes --all or ids, not both")
    driver = Driver.open(settings, create=False)
    done = driver.purge(None if everything else list(ids))
    print(f"{done.gone} purged")
    if done.kept:
        raise Conflict(f"{len(done.kept)} removed volumes were not purged", hint="the lines above say why")


def _all(driver: Driver) -> Iterator[dict[str, Any]]:
    """Every volume; one that cannot be read, or whose disk hangs, with the reason as its warning."""

    def one(name: str) -> dict[str, Any] | None:
        try:
            return _one(driver, name)
        except NoSuchVolume:  # removed since
            return None
        except HostprepError as exc:
            return _unknown(name, str(exc))

    for name, answers, found in look([name for name, _ in driver.volumes()], one):
        if not answers:
            yield _unknown(name, _hangs(name))
        elif found is not None:
            yield found


def _hangs(name: str) -> str:
    return f"the disk of volume {printable(name)} does not answer"


def _unknown(name: str, why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("uid", "gid", "mode", "label"))
    unknown: dict[str, Any] = {**nothing, "options": {}, "ready": False, "drift": [], "warnings": [why]}
    return {"name": name, "mountpoint": None, "created_at": None, "status": unknown}


def _one(driver: Driver, name: str) -> dict[str, Any]:
    found = driver.get(name, _of_running)
    mountpoint, created_at = found["Mountpoint"], found["CreatedAt"]
    return {"name": name, "mountpoint": mountpoint, "created_at": created_at, "status": found["Status"]}


def row(volume: dict[str, Any]) -> list[str]:
    """What COLUMNS shows of a volume."""
    status = volume["status"]
    cells = [volume["name"], owner(status), status["mode"], status["label"], state(status), volume["mountpoint"]]
    return [cell or "-" for cell in cells]


def owner(status: dict[str, Any]) -> str:
    return "-" if status["uid"] is None else f"{status['uid']}:{status['gid']}"


def state(status: dict[str, Any]) -> str:
    """One word for a Status."""
    if status.get("progress"):
        return "preparing"
    if status["drift"]:
        return "drift"
    return "ready" if status["ready"] else "unusable"


def lines(volume: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """All that is known of a volume."""
    status = volume["status"]
    yield "name", volume["name"]
    yield "state", state(status)
    yield "mountpoint", volume["mountpoint"] or "-"
    yield "created", volume["created_at"] or "-"
    yield "owner", owner(status)
    if "host_uid" in status:
        yield "on host", f"{status['host_uid']}:{status['host_gid']}"
    for key, value in status.get("userns", {}).items():
        yield f"{key} map", value
    yield "mode", status["mode"] or "-"
    yield "label", status["label"] or "-"
    yield "options", " ".join(f"{key}={value}" for key, value in status["options"].items()) or "none"
    for key, value in status.get("resolved", {}).items():
        yield "resolved", f"{key}={value}"
    for sentence in status["drift"]:
        yield "drift", sentence
    for sentence in status["warnings"]:
        yield "warning", sentence
    if progress := status.get("progress"):
        yield "progress", _far(Progress(**progress))


def _far(now: Progress) -> str:
    """How far a pass is; with a bar where the whole is known."""
    if not now.estimate:
        return output.pace(now)
    filled = min(20, 20 * now.done // now.estimate)
    return f"[{'#' * filled:.<20}] {output.pace(now)}"
