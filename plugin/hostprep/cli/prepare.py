"""hostprep prepare."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ..errors import printable
from ..host.labels import Labels
from ..settings import Settings
from ..tree import directory
from ..tree.directory import Prepared
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
    made, changed, left = ("would make", "would change", "would leave") if dry_run else ("made", "changed", "left")
    found = [f"{made} the directory"] if done.made else []
    found += [f"{changed} {change}" for change in done.changes]
    if done.tree is not None:
        found.append(f"{changed} {done.tree.changed:,} of {done.tree.done:,} entries below it")
        found += [f"{left} alone {each}" for each in done.tree.sentences()]
    return [f"{done.path}: {line}" for line in (found or ["nothing to change"]) + done.warnings]
