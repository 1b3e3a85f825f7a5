"""The command line. All commands but `serve` work on the root directory itself and need no running server."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..doctor.finding import Diagnosis, Finding, Verdict, together
from ..errors import (
    BadSetting,
    Busy,
    Conflict,
    HostprepError,
    Invalid,
    NoContainer,
    NoImage,
    NoSuchVolume,
    in_words,
    printable,
)
from ..host.process import raise_open_files
from ..options import parse_image, parse_path
from ..settings import Settings, engine_socket
from ..volumes.declaration import Images
from ..volumes.driver import Driver
from . import output

if TYPE_CHECKING:
    from ..doctor.finding import Apply
    from ..engine.image import Findings

_F = TypeVar("_F", bound=Callable[..., Any])
_ASKED: Final = 60.0  # seconds that an engine may take to answer a person
_FLAGS: Final = {
    "root": "directory that holds the volumes",
    "socket": "where to listen",
    "allow": "colon-separated prefixes for path",
    "scope": "local or global",
    "selinux": "auto, required, force or off",
    "patience": "how long a Mount waits for a pass over a tree",
    "trash-keep": "how long removed volumes can be restored",
    "require-marker": "1: refuse a root without hostprep.json",
    "log-level": "debug, info, warning or error",
    "docker-host": "the engine that is asked about images",
}


def run() -> None:
    """Run the command line. What click has to say it says itself: exit 2."""
    try:
        group.main(prog_name="hostprep", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.Abort:
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None})
@click.version_option(package_name="hostprep", message="%(version)s")
@click.pass_context
def group(context: click.Context, /, **flags: str | None) -> None:
    """A Docker volume driver that makes the host directory ready for the container: owner, mode, SELinux label.

    Each setting is also an environment variable, HOSTPREP_ROOT for --root; a flag overrides it.
    """
    environ = dict(os.environ)
    environ.update({f"HOSTPREP_{key.upper()}": value for key, value in flags.items() if value is not None})
    context.obj = settings = Settings.read(environ)
    raise_open_files()
    if context.invoked_subcommand != "serve":
        logging.basicConfig(stream=sys.stderr, format="hostprep: %(message)s")
        logging.getLogger("hostprep").setLevel(settings.log_level.upper())


for _flag, _help in _FLAGS.items():
    group.params.append(click.Option([f"--{_flag}"], metavar="VALUE", help=_help))


def _options(command: _F) -> _F:
    return click.option("-o", "--opt", "given", multiple=True, metavar="KEY=VALUE", help="an option of the volume")(
        command
    )


def _json_flag(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="print JSON")(command)


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise Invalid(f'-o "{printable(each)}" is not KEY=VALUE', hint="for example -o uid=184")
        if key in found:
            raise Invalid(f"-o {printable(key)} is given twice", hint="give it once")
        found[key] = value
    return found


def _images(settings: Settings, given: Mapping[str, str]) -> Images | None:
    if not settings.docker_host or "image" not in given:
        return None
    from ..engine.client import Images as Engine

    return Engine(settings.docker_host)


def _soon(settings: Settings) -> float:
    return time.monotonic() + settings.patience


@group.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Serve the volume driver protocol until SIGTERM."""
    from ..serve.server import serve as run_server

    run_server(settings)


@group.command()
@click.option("--trash", "which", flag_value="trash", help="removed volumes that can be restored")
@click.option("--retained", "which", flag_value="retained", help="volumes removed with on_remove=retain")
@_json_flag
@click.pass_obj
def ls(settings: Settings, which: str | None, as_json: bool) -> None:  # noqa: FBT001  # click passes by name
    """List volumes with their state."""
    driver = Driver.open(settings, create=False)
    if which is None:
        found = list(_volumes(driver))
        if as_json:
            output.as_json(found)
        else:
            output.table(output.VOLUME_COLUMNS, [output.volume_row(volume) for volume in found])
        return
    entries = driver.removed_volumes() if which == "trash" else driver.retained_volumes()
    if as_json:
        output.as_json(entries)
    else:
        columns = list(entries[0]) if entries else ["name"]
        output.table([column.upper() for column in columns], [[str(entry[c]) for c in columns] for entry in entries])


@group.command()
@click.argument("name")
@_json_flag
@click.pass_obj
def status(settings: Settings, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Show one volume as it is on disk now."""
    volume = _volume(Driver.open(settings, create=False), name, strict=True)
    if as_json:
        output.as_json(volume)
    else:
        output.one_volume(volume)


def _volumes(driver: Driver) -> Iterator[dict[str, Any]]:
    for name, _ in driver.volumes():
        with contextlib.suppress(NoSuchVolume):  # removed since
            yield _volume(driver, name)


def _volume(driver: Driver, name: str, *, strict: bool = False) -> dict[str, Any]:
    try:
        found = driver.get(name)
    except HostprepError as exc:
        if strict or isinstance(exc, NoSuchVolume):
            raise
        nothing = dict.fromkeys(("uid", "gid", "mode", "label"))
        state: dict[str, Any] = {**nothing, "options": {}, "ready": False, "drift": [], "warnings": [str(exc)]}
        return {"name": name, "mountpoint": None, "created_at": None, "status": state}
    return {
        "name": name,
        "mountpoint": found["Mountpoint"],
        "created_at": found["CreatedAt"],
        "status": found["Status"],
    }


@group.command()
@click.argument("name")
@_options
@click.pass_obj
def create(settings: Settings, name: str, given: tuple[str, ...]) -> None:
    """Make a volume, as docker volume create -d hostprep does."""
    pairs = _pairs(given)
    Driver.open(settings, create=True, images=_images(settings, pairs)).create(name, pairs, _soon(settings))
    print(name)


@group.command()
@click.argument("name")
@click.option("--retained", is_flag=True, help="move retained data to the trash")
@click.pass_obj
def rm(settings: Settings, name: str, retained: bool) -> None:  # noqa: FBT001
    """Remove a volume: to the trash, from where restore brings it back."""
    driver = Driver.open(settings, create=False)
    (driver.discard_retained if retained else driver.remove)(name, _soon(settings))
    print(name)


@group.command()
@click.argument("name")
@_options
@click.option("--unset", multiple=True, metavar="KEY", help="an option to take away")
@click.option("--no-wait", is_flag=True, help="leave what follows to the next start of a container")
@click.pass_obj
def apply(settings: Settings, name: str, given: tuple[str, ...], unset: tuple[str, ...], no_wait: bool) -> None:  # noqa: FBT001
    """Change options of a volume in place, which engines cannot."""
    pairs = _pairs(given)
    if both := pairs.keys() & set(unset):
        raise Invalid(f"{min(both)} is both set and unset", hint="do one of the two")
    driver = Driver.open(settings, create=False, images=_images(settings, pairs))
    driver.apply(name, pairs, unset, _soon(settings))
    if no_wait:
        print(f"{name}: recorded; the next start of a container makes it so")
        return
    _wait(driver, name)
    print(name)


def _wait(driver: Driver, name: str) -> None:
    """Make the volume ready, however long its pass takes, with a bar."""
    with output.Bar(f"preparing {name}") as update:
        while True:
            try:
                driver.mount(name, time.monotonic() + 0.5)
            except Busy:
                if running := driver.passes.running(name):
                    update(running.progress)
            else:
                return


@group.command()
@click.argument("name")
@click.option("--id", "entry", metavar="ID", help="which of several, as ls --trash shows them; otherwise the newest")
@click.option("--as", "new_name", metavar="NEW", help="under another name")
@click.pass_obj
def restore(settings: Settings, name: str, entry: str | None, new_name: str | None) -> None:
    """Bring a removed volume back, data and all."""
    driver = Driver.open(settings, create=False)
    print(driver.restore(name, entry=entry, new_name=new_name, deadline=_soon(settings)).name)


@group.command()
@click.option("--all", "everything", is_flag=True, help="all that was removed, whenever")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.pass_obj
def purge(settings: Settings, everything: bool, ids: tuple[str, ...]) -> None:  # noqa: FBT001
    """Delete removed volumes for good: what has expired, or those with the given ids."""
    if everything and ids:
        raise Invalid("purge takes --all or ids, not both")
    driver = Driver.open(settings, create=False)
    print(f"{driver.purge(None if everything else list(ids))} purged")


@group.command()
@click.argument("path")
@_options
@click.option("--dry-run", is_flag=True, help="print the plan, change nothing")
@_json_flag
@click.pass_obj
def prepare(settings: Settings, path: str, given: tuple[str, ...], dry_run: bool, as_json: bool) -> None:  # noqa: FBT001
    """Give any directory, and what is in it, an owner, mode and label: no volume, no server."""
    from ..host.labels import Labels
    from ..tree.directory import prepare as prepare_directory

    pairs = _pairs(given)
    if os.geteuid() != 0:
        raise BadSetting("hostprep needs to be root", hint="it gives directories to other users; use sudo")
    path = os.path.abspath(path)
    with output.Bar(f"preparing {path}") as update:
        done = prepare_directory(
            path,
            pairs,
            Labels.open(settings.selinux, managed=settings.managed),
            root=settings.root,
            dry_run=dry_run,
            report=update,
        )
    if as_json:
        output.as_json(output.prepared(done, dry_run=dry_run))
    else:
        for line in output.plan_lines(done, dry_run=dry_run):
            print(printable(line))


@group.command("import")
@click.argument("name", required=False)
@click.option("--local-persist", "state", metavar="FILE", help="each volume of local-persist's, left where it is")
@click.option("--from", "source", metavar="DIR", help="a directory, moved here to be the volume NAME")
@_options
@click.option("--dry-run", is_flag=True, help="print the plan, change nothing")
@click.pass_obj
def import_volumes(
    settings: Settings,
    name: str | None,
    state: str | None,
    source: str | None,
    given: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001
) -> None:
    """Take over volumes of another driver. Options given with -o are for all of them."""
    from ..volumes.importing import from_directory, read_local_persist

    if (state is None) == (source is None):
        raise click.UsageError("Give --local-persist FILE, or --from DIR NAME.")
    if (source is None) == (name is not None):
        raise click.UsageError("--from DIR takes a NAME, --local-persist takes the names from FILE.")
    pairs = _pairs(given)
    found = {} if state is None else read_local_persist(state)
    driver = Driver.open(settings, create=not dry_run, images=_images(settings, pairs))
    if source is None or name is None:
        _import_paths(driver, found, pairs, dry_run=dry_run)
        return
    moved = from_directory(driver, name, os.path.abspath(source), pairs, _soon(settings), dry_run=dry_run)
    for line in output.move_lines(name, moved, dry_run=dry_run):
        print(printable(line))
    if not dry_run:
        _wait(driver, name)


def _import_paths(driver: Driver, state: Mapping[str, str], pairs: Mapping[str, str], *, dry_run: bool) -> None:
    from ..volumes.importing import Outcome, from_local_persist

    steps = []
    for step in from_local_persist(driver, state, pairs, lambda: _soon(driver.settings), dry_run=dry_run):
        steps.append(step)
        print(printable(output.step_line(step, dry_run=dry_run)), flush=True)
        if step.outcome is Outcome.IMPORTED and not dry_run:
            try:
                _wait(driver, step.name)
            except (HostprepError, OSError) as exc:
                print(printable(f"{step.name}: not ready: {in_words(exc)}"))
                steps[-1] = replace(step, outcome=Outcome.REFUSED)
    if refused := sum(step.outcome is Outcome.REFUSED for step in steps):
        could = "could not be imported" if dry_run else "were not imported, or are not ready"
        raise Conflict(f"{refused} of {len(steps)} volumes {could}", hint="the lines above say why")


@group.command()
@click.argument("image", required=False)
@click.option("--path", "paths", multiple=True, metavar="PATH", help="a directory for a volume, besides the VOLUMEs")
@click.option("--user", metavar="USER", help="in the place of the image's USER, as docker run --user has it")
@click.option("--pull", is_flag=True, help="have the engine pull the image where it does not have it")
@click.option("--archive", metavar="FILE", help="look into what docker save wrote; no engine is needed")
@_json_flag
@click.pass_obj
def probe(
    settings: Settings,
    image: str | None,
    paths: tuple[str, ...],
    user: str | None,
    pull: bool,  # noqa: FBT001
    archive: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Find out which owner an image's volumes need. Nothing of the image is run."""
    if image is None and archive is None:
        raise click.UsageError("Missing argument 'IMAGE', or --archive FILE.")
    if pull and archive is not None:
        raise click.UsageError("--pull is of an engine, --archive is without one.")
    if image is not None:
        image = parse_image(image)
    paths = tuple(parse_path(path, key="at") for path in paths)
    with _ended_in_order():
        if archive is not None:
            from ..engine.archive import opened
            from ..engine.image import look

            with opened(archive, image) as (name, config, layers):
                findings = look(name, config, layers, (*config.volumes, *paths), user)
        else:
            assert image is not None  # noqa: S101  # said above
            findings = _look(settings, image, paths, user, pull=pull)
    output.findings(findings, user, as_json=as_json)


def _look(settings: Settings, image: str, paths: tuple[str, ...], user: str | None, *, pull: bool) -> Findings:
    """Ask an engine, and have it pull the *image* where it has none and that is wanted."""
    from ..engine.client import Absent
    from ..engine.client import Images as Engine

    try:
        engine = Engine(_engine(settings))
    except NoContainer as exc:
        raise NoImage(exc.message, hint="probe there, or an --archive here") from None
    try:
        return engine.look(image, paths, user, seconds=_ASKED)
    except Absent:
        if not pull:
            raise
    with output.Pull(image) as update:
        engine.pull(image, update)
    return engine.look(image, paths, user, seconds=_ASKED)


def _engine(settings: Settings) -> str:
    """Where the engine listens that a person means.

    Raises:
        NoContainer: not on this host.
    """
    host = settings.docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        return engine_socket(host)
    except ValueError as exc:
        raise NoContainer(f"DOCKER_HOST={printable(host)} is not {exc}", hint="look there") from None


@group.command()
@click.argument("name", required=False)
@click.option("--container", metavar="C", help="for the user of this container, or --user in it")
@click.option("--user", metavar="USER", help="for this user, as docker run --user has it")
@click.option("--fix", is_flag=True, help="apply what hostprep itself can mend")
@_json_flag
@click.pass_obj
def doctor(
    settings: Settings,
    name: str | None,
    container: str | None,
    user: str | None,
    fix: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Say whether a user, in a container, can use a volume, and what mends it if not. Exit 1: not.

    Without NAME: whether hostprep itself is installed as it should be.
    """
    if name is None:
        if fix or container is not None or user is not None:
            raise click.UsageError("Missing argument 'NAME'.")
        found = _installation(settings)
        output.diagnosis(found, as_json=as_json)
        sys.exit(0 if found.usable else 1)
    with _ended_in_order():
        found = _diagnose(settings, name, container, user)
        if fix and (remedy := together(found.findings)) is not None:
            if not as_json:
                output.diagnosis(found, as_json=False)
                print(f"\n# {remedy.command(name)}\n", flush=True)
            _apply(settings, name, remedy)
            found = _diagnose(settings, name, container, user)
    output.diagnosis(found, as_json=as_json)
    sys.exit(0 if found.usable else 1)


def _installation(settings: Settings) -> Diagnosis:
    from ..doctor.installation import look
    from ..engine.client import Containers

    if os.geteuid() != 0:
        raise BadSetting("hostprep needs to be root", hint="it looks into directories of other users; use sudo")
    try:
        with Containers.asked(_engine(settings), seconds=_ASKED) as engine:
            asked: Containers | NoContainer = engine
    except NoContainer as exc:
        asked = exc
    return Diagnosis("", (), tuple(look(settings, asked)))


def _diagnose(settings: Settings, name: str, container: str | None, user: str | None) -> Diagnosis:
    from ..doctor.diagnose import diagnose
    from ..doctor.subject import patients
    from ..engine.client import Containers

    driver = Driver.open(settings, create=False)
    with contextlib.ExitStack() as stack:
        engine, missing = None, ""
        try:
            engine = stack.enter_context(Containers.asked(_engine(settings), seconds=_ASKED))
        except NoContainer as exc:
            if container is not None:
                raise
            missing = exc.message
        whom = patients(driver, name, engine, container, user)
    found = diagnose(driver, name, whom)
    if not missing or user is not None:
        return found
    note = Finding("engine", Verdict.NOTE, f"{missing}: containers that have the volume are not looked at")
    return replace(found, findings=(*found.findings, note))


def _apply(settings: Settings, name: str, remedy: Apply) -> None:
    driver = Driver.open(settings, create=False)
    for given, unset in remedy.steps():
        driver.apply(name, given, unset, _soon(settings))
        _wait(driver, name)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Turn SIGTERM into an exception, as SIGINT is one: what was made is removed on the way."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
