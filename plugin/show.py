"""Volumes and plans as a person reads them: tables and bars on a terminal, plain text in a pipe. Alone has rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from .directory import Prepared
from .errors import printable
from .passes import Progress


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print *rows* under *columns*; in a pipe with tabs between, for cut and awk."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*[_escaped(cell) for cell in row])
    Console().print(drawn)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def volume_row(volume: dict[str, Any]) -> list[str]:
    """A volume for `table(VOLUME_COLUMNS, …)`."""
    status = volume["status"]
    owner = "-" if status["uid"] is None else f"{status['uid']}:{status['gid']}"
    return [
        volume["name"],
        owner,
        status["mode"] or "-",
        status["label"] or "-",
        state(status),
        volume["mountpoint"] or "-",
    ]


VOLUME_COLUMNS = ["VOLUME", "OWNER", "MODE", "LABEL", "STATE", "MOUNTPOINT"]


def state(status: dict[str, Any]) -> str:
    """One word for a Status."""
    if status.get("progress"):
        return "preparing"
    if status["drift"]:
        return "drift"
    return "ready" if status["ready"] else "unusable"


def one_volume(volume: dict[str, Any]) -> None:
    """Print all that is known of one volume."""
    status = volume["status"]
    options = " ".join(f"{key}={value}" for key, value in status["options"].items())
    lines = [
        ("name", volume["name"]),
        ("state", state(status)),
        ("mountpoint", volume["mountpoint"] or "-"),
        ("created", volume["created_at"] or "-"),
        ("owner", "-" if status["uid"] is None else f"{status['uid']}:{status['gid']}"),
        ("mode", status["mode"] or "-"),
        ("label", status["label"] or "-"),
        ("options", options or "none"),
        *(("drift", each) for each in status["drift"]),
        *(("warning", each) for each in status["warnings"]),
    ]
    if progress := status.get("progress"):
        lines.append(("progress", progress_line(progress)))
    for key, value in lines:
        print(f"{key + ':':<12}{printable(value)}")


def progress_line(progress: dict[str, Any]) -> str:
    """How far a pass is: a bar where the whole is known, entries, rate and time left."""
    now = Progress(progress["done"], progress["estimate"], progress["rate"], progress["seconds_left"])
    filled = min(20, 20 * now.done // now.estimate) if now.estimate else 0
    bar = f"[{'#' * filled}{'.' * (20 - filled)}] " if now.estimate else ""
    left = f", about {now.left} left" if now.left else ""
    return f"{bar}{now}, {now.rate:,.0f}/s{left}"


def prepared(done: Prepared, *, dry_run: bool) -> dict[str, Any]:
    """What `prepare` did, or would do, as JSON has it."""
    return {
        "path": done.path,
        "dry_run": dry_run,
        "made": done.made,
        "changes": [str(change) for change in done.changes],
        "tree": None if done.tree is None else asdict(done.tree),
    }


def plan_lines(done: Prepared, *, dry_run: bool) -> list[str]:
    """What `prepare` did, or would do, a sentence each."""
    would = "would " if dry_run else ""
    lines = [f"{would}make the directory"] if done.made else []
    lines += [f"{would}change {change}" for change in done.changes]
    if done.tree is not None:
        lines.append(f"{would}change {done.tree.changed:,} of {done.tree.done:,} entries below it")
        lines += [f"{would}leave alone {each}" for each in done.tree.sentences()]
    return [f"{done.path}: {line if dry_run else _past(line)}" for line in lines] or [f"{done.path}: nothing to change"]


def _past(line: str) -> str:
    verb, _, rest = line.partition(" ")
    return f"{ {'make': 'made', 'change': 'changed', 'leave': 'left'}[verb] } {rest}".strip()


class Bar:
    """The progress of a pass: a bar with rate and time left on a terminal, nothing in a pipe."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Callable[[Progress], None]:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console
            from rich.text import Text

            class Entries(progress.ProgressColumn):
                def render(self, task: progress.Task) -> Text:
                    now: Progress = task.fields["now"]
                    left = f", about {now.left} left" if now.left else ""
                    return Text(f"{now}, {now.rate:,.0f}/s{left}")

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=20),
                Entries(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(printable(self._what), total=None, now=Progress())
            self._bar.start()
        return self._update

    def _update(self, now: Progress) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=now.done, total=now.estimate, now=now)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
