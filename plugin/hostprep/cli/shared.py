"""What several commands take and do: their options, the engine they ask, waiting until a volume is ready."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final

import click

from ..errors import BadSetting, Busy, Invalid, NoEngine, printable
from ..settings import Settings, engine_socket
from ..volumes.driver import Driver
from . import output

ENGINE_SECONDS: Final = 60.0
"""How long an engine may take to answer a person."""


def pairs(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    """The callback of a flag that is given once for each KEY=VALUE."""
    flag, found = parameter.opts[0], dict[str, str]()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            example = "uid=184" if flag == "-o" else "backup=yes"
            raise Invalid(f'{flag} "{printable(word)}" is not KEY=VALUE', hint=f"for example {flag} {example}")
        if flag == "--label" and any("\ud800" <= each <= "\udfff" for each in word):  # an option's own check says more
            raise Invalid(f'{flag} "{printable(word)}" is not UTF-8', hint="an engine takes nothing else")
        if key in found:
            raise Invalid(f"{flag} {printable(key)} is given twice", hint="give it once")
        found[key] = value
    return found


given_options = click.option(
    "-o", "--opt", "given", multiple=True, metavar="KEY=VALUE", callback=pairs, help="Driver option, such as uid=184."
)
dry_run_flag = click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def directory_argument(text: str) -> str:
    """The absolute path of a directory that was given on the command line, relative to the working directory.

    `..` may stand at its beginning: the path of the working directory has no symlink. Behind a name, where `..` leads
    depends on whether the name is a symlink's.

    Raises:
        Invalid: `..` stands behind a name, or the path is empty.
    """
    if not text or ".." in itertools.dropwhile(("", ".", "..").__contains__, text.split("/")):
        what = "has .. behind a name, which may be a symlink's" if text else "is empty"
        raise Invalid(f'the path "{printable(text)}" {what}', hint="write the directory's own path")
    return os.path.normpath(f"/{os.path.join(os.getcwd(), text).lstrip('/')}")


def require_root(why: str) -> None:
    if os.geteuid() != 0:
        raise BadSetting("hostprep needs to be root", hint=f"{why}; use sudo")


def deadline(settings: Settings) -> float:
    """Until when a change that begins now may wait for others, on the clock of time.monotonic()."""
    return time.monotonic() + settings.patience


def open_driver(settings: Settings, given: Mapping[str, str], *, create: bool) -> Driver:
    """The driver for a change to the options *given*: with an engine to ask if they name an image."""
    images = None
    if settings.docker_host and "image" in given:
        from ..engine.client import Engine

        images = Engine(settings.docker_host)
    return Driver.open(settings, create=create, images=images)


def make_ready(driver: Driver, name: str) -> None:
    """Make the volume ready, however long its pass takes, with a bar."""
    with output.pass_bar(f"preparing {name}") as update:
        while True:
            try:
                driver.mount(name, time.monotonic() + 0.5)
            except Busy:
                if running := driver.passes.running(name):
                    update(running.progress)
            else:
                return


def engine_address(settings: Settings) -> str:
    """The socket of the engine that the caller means.

    Raises:
        NoEngine: it is not on this host.
    """
    host = settings.docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        return engine_socket(host)
    except ValueError as exc:
        hint = "run hostprep on the engine's host; probe reads an --archive, too"
        raise NoEngine(f"DOCKER_HOST={printable(host)} is not {exc}", hint=hint) from None


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Make SIGTERM an exception, as SIGINT is: on its way out the probe's container is removed."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
