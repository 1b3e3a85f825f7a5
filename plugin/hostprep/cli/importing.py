"""hostprep import."""

from __future__ import annotations

from collections.abc import Mapping

import click

from ..errors import Conflict, HostprepError, in_words, printable
from ..settings import Settings
from ..volumes.driver import Driver
from ..volumes.importing import Outcome, Step, from_directory, from_local_persist, read_local_persist
from .shared import deadline, directory_argument, dry_run_flag, given_options, make_ready, open_driver
from .telling import tell_engine


@click.command("import")
@click.argument("name", required=False)
@click.option("--local-persist", "state", metavar="FILE", help="Import each volume in local-persist's state FILE.")
@click.option("--from", "source", metavar="DIR", help="Move the directory DIR: it becomes the volume NAME.")
@given_options
@dry_run_flag
@click.pass_obj
def import_volumes(
    settings: Settings, *, name: str | None, state: str | None, source: str | None, given: dict[str, str], dry_run: bool
) -> None:
    """Take over volumes of another driver.

    Volumes of local-persist stay where they are. DIR is moved, within one file system. Each imported volume gets the
    options given with -o.
    """
    if (state is None) == (source is None):
        raise click.UsageError("Give --local-persist FILE, or --from DIR NAME.")
    if (source is None) == (name is not None):
        raise click.UsageError("--from DIR takes a NAME, --local-persist takes the names from FILE.")
    found = {} if state is None else read_local_persist(state)
    driver = open_driver(settings, given, create=not dry_run)
    if source is None or name is None:
        _import_all(driver, found, given, dry_run=dry_run)
        return
    moved = from_directory(driver, name, directory_argument(source), given, deadline(settings), dry_run=dry_run)
    would = "would move" if dry_run else "moved"
    print(printable(f"{name}: {would} {moved.source} to {moved.place}"))
    if dry_run:
        for change in moved.changes:
            print(printable(f"{name}: would change {change}"))
    else:
        make_ready(driver, name)
        tell_engine(settings, driver, name)


def _import_all(driver: Driver, state: Mapping[str, str], given: Mapping[str, str], *, dry_run: bool) -> None:
    total = refused = 0
    for step in from_local_persist(driver, state, given, lambda: deadline(driver.settings), dry_run=dry_run):
        total += 1
        refused += step.outcome is Outcome.REFUSED
        print(printable(f"{step.name}: {_outcome(step, dry_run=dry_run)}"), flush=True)
        if step.outcome is Outcome.IMPORTED and not dry_run:
            try:
                make_ready(driver, step.name)
                tell_engine(driver.settings, driver, step.name)
            except (HostprepError, OSError) as exc:
                refused += 1
                print(printable(f"{step.name}: not ready: {in_words(exc)}"))
    if refused:
        could = "could not be imported" if dry_run else "were not imported, or are not ready"
        raise Conflict(f"{refused} of {total} volumes {could}", hint="the lines above say why")


def _outcome(step: Step, *, dry_run: bool) -> str:
    if step.outcome is Outcome.REFUSED:
        return f"skipped: {step.why}"
    if step.outcome is Outcome.THERE:
        return f"skipped: it exists already, with path {step.path}"
    return f"{'would import' if dry_run else 'imported'} {step.path}"
