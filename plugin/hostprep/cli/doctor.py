"""hostprep doctor."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import Any, Final

import click

from ..doctor.diagnose import diagnose
from ..doctor.finding import Apply, Diagnosis, Finding, Prepare, Verdict, own_remedies
from ..doctor.installation import check_installation
from ..doctor.subject import subjects
from ..engine.client import Engine
from ..engine.containers import EngineInfo
from ..errors import NoEngine, printable
from ..settings import Settings
from ..tree.directory import prepare
from ..volumes.driver import Driver
from . import output
from .shared import ENGINE_SECONDS, deadline, engine_address, json_flag, make_ready, require_root, sigterm_raises
from .telling import tell_engine

_STYLES: Final = {Verdict.OK: "green", Verdict.NOTE: "cyan", Verdict.WARNING: "yellow", Verdict.BAD: "bold red"}


@click.command()
@click.argument("name", required=False)
@click.option("--container", metavar="C", help="Check for the user that this container runs as, or for --user in it.")
@click.option("--user", metavar="USER", help="Check for this user, like docker run --user.")
@click.option("--fix", is_flag=True, help="Apply the fixes that are hostprep's own.")
@json_flag
@click.pass_obj
def doctor(
    settings: Settings, *, name: str | None, container: str | None, user: str | None, fix: bool, as_json: bool
) -> None:
    """Find out why a container cannot use a volume.

    Without NAME, check the installation of hostprep. Each fault is shown with the command that mends it, if there is
    one. The exit status is 1 if the volume cannot be used, or the installation does not work.
    """
    if name is None:
        if fix or container is not None or user is not None:
            raise click.UsageError("Missing argument 'NAME'.")
        found = _installation(settings)
    else:
        with sigterm_raises():
            found = _diagnose(settings, name, container, user)
            if fix and (remedies := own_remedies(found.findings)):
                if not as_json:
                    _show(found)
                    print("", *(f"# {remedy.command(name)}" for remedy in remedies), "", sep="\n", flush=True)
                for remedy in remedies:
                    _fix(settings, name, remedy)
                found = _diagnose(settings, name, container, user)
    if as_json:
        output.as_json(_in_json(found))
    else:
        _show(found)
    sys.exit(0 if found.usable else 1)


def _installation(settings: Settings) -> Diagnosis:
    require_root("it looks into directories of other users")
    local: frozenset[str] = frozenset()
    try:
        with Engine(engine_address(settings)).connect(seconds=ENGINE_SECONDS) as connection:
            engine: EngineInfo | NoEngine = connection.info
            local = connection.local_volumes()
    except NoEngine as exc:
        engine = exc
    return Diagnosis("", (), tuple(check_installation(settings, engine, local)))


def _diagnose(settings: Settings, name: str, container: str | None, user: str | None) -> Diagnosis:
    driver = Driver.open(settings, create=False)
    with contextlib.ExitStack() as stack:
        engine, missing = None, ""
        try:
            engine = stack.enter_context(Engine(engine_address(settings)).connect(seconds=ENGINE_SECONDS))
        except NoEngine as exc:
            if container is not None:
                raise
            missing = exc.message
        whom = subjects(driver, name, engine, container, user)
        local = engine.local_volumes() if engine else ()
    found = diagnose(driver, name, whom, local)
    if not missing or user is not None:
        return found
    note = Finding("engine", Verdict.NOTE, f"{missing}: containers that use the volume are not checked")
    return replace(found, findings=(*found.findings, note))


def _fix(settings: Settings, name: str, remedy: Apply | Prepare) -> None:
    driver = Driver.open(settings, create=False)
    if isinstance(remedy, Prepare):
        with output.pass_bar(f"preparing {remedy.path}") as update:
            prepare(remedy.path, remedy.options, driver.labels, root=settings.root, dry_run=False, report=update)
        return
    if remedy.applies:
        driver.apply(name, remedy.options, (), deadline(settings))
        make_ready(driver, name)
    if remedy.contents:
        with output.pass_bar(f"repairing {name}") as update:
            driver.repair(name, report=update)
    tell_engine(settings, driver, name, changed=True)


def _show(found: Diagnosis) -> None:
    """Print the diagnosis; each command is one line, to be pasted."""
    what, usable, unusable = "hostprep on this host: ", "works", "does not work"
    if found.name:
        whom = f" for {', '.join(found.whom)}" if found.whom else ""
        what, usable, unusable = f"volume {found.name}{whom}: ", "usable", "not usable"
    output.styled((printable(what), ""), (usable if found.usable else unusable, _STYLES[found.worst]))
    print()
    for finding in found.findings:
        mark = "" if finding.verdict is Verdict.OK else finding.verdict.value.upper() + "  "
        output.styled((f"{finding.check:<13}", _STYLES[finding.verdict]), (mark + printable(finding.what), ""))
        if finding.wanted:
            print(f"{'':<12} wanted: {printable(finding.wanted)}")
        if fix := finding.fix(found.name):
            print(f"{'':<12} fix:    {printable(fix)}")


def _in_json(found: Diagnosis) -> dict[str, Any]:
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
                "remedy": each.remedy.code if each.remedy else None,
                "by_hostprep": isinstance(each.remedy, Apply | Prepare),
            }
            for each in found.findings
        ],
    }
