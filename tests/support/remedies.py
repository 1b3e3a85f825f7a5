"""What a remedy of doctor's has to do, and which there are: the same procedure on a private engine and in the guest.

A remedy is right if, once it is applied, doctor is content, the container works, and a restart of the container changes
nothing: its start is hostprep's next Mount.
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pytest

DOCTOR = Path(__file__).resolve().parents[2] / "plugin/hostprep/doctor"
WRITE = "echo written > /data/file; cat /data/file"
OWN = ("hostprep apply mongo", "hostprep repair mongo", "hostprep prepare")
"""What hostprep carries out itself, with --fix."""
STATE = """
import os, sys
def look(path):
    st = os.lstat(path)
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        kept = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    except PermissionError:  # of root, by an NFS server that does not heed it
        kept = None
    print(path, st.st_uid, st.st_gid, oct(st.st_mode), kept)
for top in sys.argv[1:]:
    look(top)
    for directory, names, files in os.walk(top):
        for name in sorted(names + files):
            look(os.path.join(directory, name))
"""


class Scene(Protocol):
    """An engine with hostprep, as an administrator has them before him."""

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `hostprep doctor`."""

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command line as it was printed."""

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `docker`, whether it succeeds or not."""

    def state(self, directory: str) -> str:
        """Owner, mode and attributes of a directory and all that is in it, as STATE prints them."""


S = TypeVar("S", bound=Scene)


@dataclass(frozen=True)
class Row(Generic[S]):
    """A situation that brings a remedy out."""

    code: str
    """The remedy's."""
    arrange: Callable[[S], str | None]
    """Bring it about, for a container db with the volume mongo at /data. Returns the directory that db is to have, if
    it is not the volume's."""
    command: str
    """What is printed; with … at its end, how that begins."""
    uses: str
    """A script that the container can only run when all is well."""
    denied: bool
    """Whether it cannot before."""

    def __str__(self) -> str:
        return self.arrange.__name__.strip("_")


class Table(Generic[S]):
    """Rows, and how they are written."""

    def __init__(self) -> None:
        self.rows: list[Row[S]] = []

    def __call__(
        self, code: str, command: str, *, uses: str = WRITE, denied: bool = True
    ) -> Callable[[Callable[[S], str | None]], Callable[[S], str | None]]:
        """Have the decorated function bring the remedy *code* out."""

        def add(arrange: Callable[[S], str | None]) -> Callable[[S], str | None]:
            self.rows.append(Row(code, arrange, command, uses, denied))
            return arrange

        return add

    def parameters(self) -> list[Any]:
        """Each row, with the printed command and with --fix where hostprep offers that.

        `make test` tries the first of each command; the others are thorough.
        """
        first = {" ".join(row.command.split()[:2]): row for row in reversed(self.rows)}.values()
        return [
            pytest.param(
                row,
                fix,
                id=f"{row}-{'fix' if fix else 'printed'}",
                marks=() if row in first and not fix else pytest.mark.thorough,
            )
            for row in self.rows
            for fix in ((False, True) if row.command.startswith(OWN) else (False,))
        ]


def hold(scene: Scene, row: Row[Any], *, fix: bool) -> None:
    """The situation is there; doctor names the remedy; it is applied; it holds."""
    directory = row.arrange(scene) or mountpoint(scene)
    finding = remedy(scene, row.code, "mongo", "--container", "db")
    command = row.command.replace("DIRECTORY", directory)
    assert finding["fix"] == command or (command[-1] == "…" and finding["fix"].startswith(command[:-1])), finding
    if row.denied:
        assert scene.docker("exec", "db", "sh", "-euc", row.uses).returncode != 0, "it was not broken"
    if fix and finding["by_hostprep"] and finding["verdict"] == "bad":
        scene.doctor("mongo", "--container", "db", "--fix")
    else:
        done = scene.shell(finding["fix"])
        assert done.returncode == 0, f"{finding['fix']}: {done.stdout}{done.stderr}"

    content(scene, "mongo", "--container", "db")
    works(scene, row.uses)
    directory = directory or mountpoint(scene)
    before = scene.state(directory)
    assert scene.docker("restart", "-t", "0", "db").returncode == 0
    after = scene.state(directory)
    assert after == before, f"{before}was before the restart, and after it:\n{after}"
    content(scene, "mongo", "--container", "db")
    works(scene, row.uses)


def mountpoint(scene: Scene) -> str:
    """Where the host has the volume; empty where there is none."""
    found = json.loads(scene.docker("volume", "inspect", "mongo").stdout)
    return str(found[0]["Mountpoint"]) if found else ""


def remedy(scene: Scene, code: str, *arguments: str) -> dict[str, Any]:
    """The finding with the remedy *code*."""
    found = json.loads(scene.doctor(*arguments, "--json").stdout)["findings"]
    finding = next((each for each in found if each["remedy"] == code), None)
    assert finding is not None, found
    return dict(finding)


def content(scene: Scene, *arguments: str) -> None:
    """doctor finds nothing more to mend."""
    done = scene.doctor(*arguments, "--json")
    findings = json.loads(done.stdout)["findings"]
    assert not [each for each in findings if each["fix"] or each["verdict"] in ("bad", "warning")], done.stdout
    assert done.returncode == 0


def works(scene: Scene, script: str) -> None:
    """The container, started if it does not run, can do *script*."""
    scene.docker("start", "db")
    done = scene.docker("exec", "db", "sh", "-euc", script)
    assert done.returncode == 0, done.stderr


# -- what there is in the source ---------------------------------------------------------------------------------------


def _calls() -> list[tuple[str, ast.Call]]:
    """Each call in doctor's source, with the function that it is in."""
    found = []
    for path in sorted(DOCTOR.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                found += [(f"{path.stem}.{function.name}", call) for call in calls]
    return found


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def codes() -> list[str]:
    """The code of each place that makes a remedy. One without a code is a part of another."""
    found = []
    for where, call in _calls():
        if _name(call) not in ("Command", "Apply", "Prepare", "own_remedy") or where == "inspection.own_remedy":
            continue
        code = call.args[0]
        assert isinstance(code, ast.Constant), f"{where}: write the code of a remedy in its place"
        if text := str(code.value):
            found += [text, f"{text} of a subpath"] if _name(call) == "own_remedy" else [text]
    return found


def sentences() -> set[str]:
    """The findings that are bad or a warning, and come without a remedy: the function and the check."""
    found = set()
    for where, call in _calls():
        if _name(call) == "Finding" and len(call.args) < 5 and not call.keywords:
            check, verdict = map(ast.unparse, call.args[:2])
            if verdict not in ("Verdict.OK", "Verdict.NOTE"):
                found.add(f"{where}: {check.strip(chr(39))}")
    return found
