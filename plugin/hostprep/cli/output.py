"""Volumes and plans as a person reads them: tables and bars on a terminal, plain text in a pipe. Alone has rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..doctor.finding import Apply, Diagnosis, Verdict
from ..errors import printable
from ..tree.directory import Prepared
from ..tree.process import Progress
from ..volumes.importing import Move, Outcome, Step

if TYPE_CHECKING:
    from ..engine.image import Directory, ProbeResult
    from .recipe import Recipe


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
        *(("resolved", f"{key}={value}") for key, value in status.get("resolved", {}).items()),
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


def step_line(step: Step, *, dry_run: bool) -> str:
    """What became of one volume of a state file, or would."""
    if step.outcome is Outcome.REFUSED:
        return f"{step.name}: skipped: {step.why}"
    if step.outcome is Outcome.THERE:
        return f"{step.name}: skipped: it is there already, with path {step.path}"
    return f"{step.name}: {'would import' if dry_run else 'imported'} {step.path}"


def move_lines(name: str, move: Move, *, dry_run: bool) -> list[str]:
    """What `import --from` did, or would do, a sentence each; what is to be mended follows as in any volume."""
    if not dry_run:
        return [f"{name}: moved {move.source} to {move.place}"]
    return [
        f"{name}: would move {move.source} to {move.place}",
        *(f"{name}: would change {change}" for change in move.changes),
    ]


def findings(found: ProbeResult, user: str | None, *, as_json: bool) -> None:
    """Print what was found of an image, why, and what follows."""
    from .recipe import recipe

    follows = recipe(found, user)
    notes = list(_notes(found, user))
    if as_json:
        print(json.dumps(_probed(found, follows, notes), indent=2))
        return
    runs_as = found.user
    lines = [
        ("image", found.image if found.image == found.config.id else f"{found.image} ({found.config.id[:19]})"),
        ("runs as", f"{runs_as.uid}:{runs_as.gid}"),
        ("why", runs_as.why),
        *([("groups", " ".join(map(str, runs_as.groups)))] if runs_as.groups else []),
        *(("link", link) for each in found.directories for link in each.links),
    ]
    for key, value in lines:
        print(f"{key + ':':<12}{printable(value)}")
    if found.directories:
        print()
        table(
            ["DIRECTORY", "IN THE IMAGE", "MODE", "CONTENT", "VOLUME"], [_directory_row(d) for d in found.directories]
        )
        print()
    for each in found.directories:
        for why in each.why[1:]:
            print(f"{'why:':<12}{printable(why)}")
    for note in notes:
        print(f"{'note:':<12}{printable(note)}")
    if follows is not None:
        # As it is to be pasted: nothing wraps these lines.
        print("\n# the volume" + ("s" if len(follows.create) > 1 else ""))
        print("\n".join(follows.create))
        print(f"\n# or all with Compose\n{follows.compose}")
        print(f"\n# a container\n{follows.run}")


DIRECTORY_COLUMNS = ["DIRECTORY", "IN THE IMAGE", "MODE", "CONTENT", "VOLUME"]


def _directory_row(found: Directory) -> list[str]:
    entry, volume = found.entry, f"uid={found.uid} gid={found.gid}"
    if entry is None:
        return [found.path, "not there", "-", "-", volume]
    return [found.path, f"{entry.uid}:{entry.gid}", str(entry.mode), "yes" if entry.filled else "no", volume]


def _notes(found: ProbeResult, user: str | None) -> Iterator[str]:
    if not found.directories:
        yield "the image has no VOLUME: say with --path where it keeps its data"
    if user is None and any(each.switches_user for each in found.directories):
        yield "the image starts as root and becomes another user: leave it so, without -u"
    if any(each.entry and each.entry.filled for each in found.directories):
        yield "into an empty volume Docker copies what the image has there, and the directory's mode with it"
    if any(not each.path.isprintable() for each in found.directories):
        yield "for a path with control characters no command can be shown"
    if not found.config.has_program:
        yield "the image names no program of its own: append one to the command"


def _probed(found: ProbeResult, follows: Recipe | None, notes: list[str]) -> dict[str, Any]:
    user = found.user
    return {
        "image": found.image,
        "id": found.config.id,
        "user": {"spec": user.spec, "uid": user.uid, "gid": user.gid, "groups": list(user.groups), "why": user.why},
        "volumes": list(found.config.volumes),
        "directories": [
            {
                "path": each.path,
                "real": each.real,
                "links": list(each.links),
                "found": each.entry
                and {
                    "uid": each.entry.uid,
                    "gid": each.entry.gid,
                    "mode": str(each.entry.mode),
                    "content": each.entry.filled,
                },
                "options": each.owner_options,
                "drops": each.switches_user,
                "why": list(each.why),
            }
            for each in found.directories
        ],
        "notes": notes,
        "create": list(follows.create) if follows else [],
        "compose": follows.compose if follows else None,
        "run": follows.run if follows else None,
    }


def diagnosis(found: Diagnosis, *, as_json: bool) -> None:
    """Print what a doctor found, the worst in red, and each command as it is to be pasted."""
    if as_json:
        print(json.dumps(_diagnosed(found), indent=2))
        return
    whom = f" for {', '.join(found.whom)}" if found.whom else ""
    usable, not_usable = ("usable", "not usable") if found.name else ("works", "does not work")
    what = f"volume {found.name}{whom}:" if found.name else "hostprep on this host:"
    print(printable(what), _styled(usable if found.usable else not_usable, found.worst))
    print()
    for finding in found.findings:
        mark = "" if finding.verdict is Verdict.OK else finding.verdict.value.upper() + "  "
        print(f"{_styled(f'{finding.check:<13}', finding.verdict)}{mark}{printable(finding.what)}")
        if finding.wanted:
            print(f"{'':<12} wanted: {printable(finding.wanted)}")
        if fix := finding.fix(found.name):
            print(f"{'':<12} fix:    {printable(fix)}")


_STYLES = {Verdict.OK: "green", Verdict.NOTE: "cyan", Verdict.WARNING: "yellow", Verdict.BAD: "bold red"}


def _styled(text: str, verdict: Verdict) -> str:
    """*text* in the colour of *verdict*, on a terminal."""
    if not sys.stdout.isatty():
        return text
    from rich.console import Console
    from rich.text import Text

    with (console := Console()).capture() as captured:
        console.print(Text(text, style=_STYLES[verdict]), end="")
    return captured.get()


def _diagnosed(found: Diagnosis) -> dict[str, Any]:
    return {
        "name": found.name,
        "whom": list(found.whom),
        "usable": found.usable,
        "findings": [
            {
                "check": each.check,
                "verdict": each.verdict.value,
                "what": each.what,
                "wanted": each.wanted,
                "fix": each.fix(found.name),
                "by_hostprep": isinstance(each.remedy, Apply),
            }
            for each in found.findings
        ],
    }


class Pull:
    """The progress of a pull: a bar on a terminal, nothing in a pipe."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(_escaped(f"pulling {self._image}"), total=None)
            self._bar.start()
        return self._update

    def _update(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total or None)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


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
