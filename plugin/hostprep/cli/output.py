"""Tables, bars, colours on a terminal; plain text in a pipe; JSON. rich is imported only where a terminal shows it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import printable
from ..tree.process import Progress


def as_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def table(columns: list[str], rows: Iterable[list[str]]) -> None:
    """Print *rows* under *columns*; in a pipe with tabs between, for cut and awk."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Print each name and value on a line."""
    for name, value in pairs:
        print(f"{name + ':':<12}{printable(value)}")


def styled(*parts: tuple[str, str]) -> None:
    """Print a line of texts, each with its style for a terminal. No line is wrapped."""
    if not sys.stdout.isatty():
        print("".join(text for text, _ in parts))
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text.assemble(*parts), soft_wrap=True)


def pace(now: Progress) -> str:
    """How far a pass is: entries, rate and time left."""
    left = f", about {now.left} left" if now.left else ""
    return f"{now}, {now.rate:,.0f}/s{left}"


@contextlib.contextmanager
def pass_bar(what: str) -> Iterator[Callable[[Progress], None]]:
    """A bar for a pass, updated with its progress."""
    with _bar(what, lambda rich: [rich.TextColumn("{task.fields[pace]}", markup=False)], pace="") as update:
        yield lambda now: update(completed=now.done, total=now.estimate, pace=pace(now))


@contextlib.contextmanager
def pull_bar(image: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a pull, updated with the bytes that are there, and their number or 0."""
    with _bar(f"pulling {image}", lambda rich: [rich.DownloadColumn(), rich.TransferSpeedColumn()]) as update:
        yield lambda done, total: update(completed=done, total=total or None)


@contextlib.contextmanager
def _bar(what: str, columns: Callable[[Any], list[Any]], **values: Any) -> Iterator[Callable[..., None]]:
    """A bar on stderr while the block runs; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda **changed: None
        return
    from rich import progress
    from rich.console import Console

    begin = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn(bar_width=20))
    with progress.Progress(*begin, *columns(progress), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=None, **values)
        yield lambda **changed: bar.update(task, **changed)
