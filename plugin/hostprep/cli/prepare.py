"""hostprep prepare, repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from ..errors import printable
from ..host.labels import Labels
from ..settings import Settings
from ..tree import directory
from ..tree.directory import Prepared
from ..tree.plan import Change
from ..tree.walk import Outcome
from ..volumes.driver import Driver
from . import output
from .shared import directory_argument, dry_run_flag, given_options, json_flag, require_root


@click.command()
@click.argument("path")
@given_options
@dry_run_flag
@json_flag
@click.pass_obj
def prepare(settings: Settings, *, path: str, given: dict[str, str], dry_run: bool, as_json: bool) -> None:
    """Set owner, mode and label of any directory.

    The directory does not become a volume. The options are uid, gid, mode, label, and recurse, which says whether the
    contents get owner and label, too.
    """
    require_root("it gives directories to other users")
    path = directory_argument(path)
    labels = Labels.open(settings.selinux, managed=settings.managed)
    with output.pass_bar(f"preparing {path}") as update:
        done = directory.prepare(path, given, labels, root=settings.root, dry_run=dry_run, report=update)
    if as_json:
        output.as_json(in_json(done, dry_run=dry_run))
        return
    for line in lines(done, dry_run=dry_run):
        print(printable(line))


@click.command()
@click.argument("name")
@dry_run_flag
@json_flag
@click.pass_obj
def repair(settings: Settings, *, name: str, dry_run: bool, as_json: bool) -> None:
    """Give everything in a volume the declared owner and label, now.

    A start of a container looks at the volume's directory only. What root has put there since, as from a backup or with
    docker cp, keeps its owner until this command goes over it, whatever recurse says.
    """
    driver = Driver.open(settings, create=False)
    with output.pass_bar(f"repairing {name}") as update:
        done = driver.repair(name, dry_run=dry_run, report=update)
    if as_json:
        changes = [str(change) for change in done.changes]
        output.as_json({"name": name, "dry_run": dry_run, "changes": changes, "tree": asdict(done.tree)})
        return
    for line in _changes(done.changes, done.tree, dry_run=dry_run):
        print(printable(f"{name}: {line}"))


def in_json(done: Prepared, *, dry_run: bool) -> dict[str, Any]:
    return {
        "path": done.path,
        "dry_run": dry_run,
        "made": done.made,
        "changes": [str(change) for change in done.changes],
        "warnings": done.warnings,
        "tree": None if done.tree is None else asdict(done.tree),
    }


def lines(done: Prepared, *, dry_run: bool) -> list[str]:
    """What was done, or would be, a sentence each."""
    found = [f"{'would make' if dry_run else 'made'} the directory"] if done.made else []
    found += _changes(done.changes, done.tree, dry_run=dry_run)
    return [f"{done.path}: {line}" for line in (found or ["nothing to change"]) + done.warnings]


def _changes(changes: Sequence[Change], tree: Outcome | None, *, dry_run: bool) -> list[str]:
    changed, left = ("would change", "would leave") if dry_run else ("changed", "left")
    found = [f"{changed} {change}" for change in changes]
    if tree is not None:
        found.append(f"{changed} {tree.changed:,} of {tree.done:,} entries below it")
        found += [f"{changed} {each}" for each in tree.planned]
        found += [f"{left} alone {each}" for each in tree.sentences()]
    return found
