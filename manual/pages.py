"""Each page: what it says of a command comes from click, what it says of options and settings from README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from hostprep.cli.commands import group

from . import roff

TOP = Path(__file__).resolve().parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
DOCS = "\n\n".join([README, *(page.read_text(encoding="utf-8") for page in sorted(TOP.glob("docs/*.md")))])
SETTINGS = "hostprep.env"
EXITS = {
    "0": "The command did what it was asked for.",
    "1": "It did not: standard error says why, and what to do.",
    "2": "A flag or an argument is wrong or missing. Nothing was done.",
    "130": "It was interrupted, with Ctrl-C.",
}
WHERE = (".PP", "The pages in docs/ are where hostprep was installed from.")


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    context = click.Context(group, info_name="hostprep", **group.context_settings)
    names = group.list_commands(context)
    commands = {name: command for name in names if (command := group.get_command(context, name)) is not None}
    made = {"hostprep.8": _main(context, commands), f"{SETTINGS}.5": _settings()}
    for name, command in commands.items():
        made[f"hostprep-{name}.8"] = _command(click.Context(command, context, info_name=name), commands)
    return {name: _tidy("\n".join(lines)) + "\n" for name, lines in made.items()}


def _tidy(text: str) -> str:
    text = re.sub(r"(?m)^(\.SH .*)\n\.PP$", r"\1", text)  # a section begins a paragraph anyway
    # The sign that keeps a word whole says within it, as behind a parenthesis, where it may be broken.
    return re.sub(r"\S*\\%\S*", lambda word: r"\%" + word[0].replace(r"\%", ""), text)


def _main(context: click.Context, commands: dict[str, click.Command]) -> list[str]:
    return [
        *_head("hostprep", 8, _summary(group)),
        *_synopsis(context),
        *_description(group),
        ".SH COMMANDS",
        *(line for name, each in commands.items() for line in roff.item(_page(f"hostprep-{name}", 8), _sentence(each))),
        *_flags(context),
        ".SH DRIVER OPTIONS",
        *roff.blocks(_section("Options")),
        *_exit_status(group),
        *_environment(group),
        *_files(),
        ".SH EXAMPLES",
        *roff.code(_shown(r"(?:docker|hostprep) ", _section("Your first volume"))),
        *roff.code(_shown(r"(?:docker|hostprep) ", _section(r"What happens at `docker volume rm`"))),
        *_see_also([*(f"hostprep-{name}" for name in commands)], SETTINGS),
        *WHERE,
    ]


def _command(context: click.Context, commands: dict[str, click.Command]) -> list[str]:
    command, name = context.command, context.info_name or ""
    others = [f"hostprep-{each}" for each in commands if each != name]
    found = [*_head(f"hostprep-{name}", 8, _summary(command)), *_synopsis(context), *_description(command)]
    found += _flags(context)
    if any("-o" in each.opts for each in command.params):
        found += [".SH DRIVER OPTIONS", f"{_page('hostprep', 8)} says what each accepts, and what it means."]
    found += [*_exit_status(command), *_environment(command), *_files()]
    if shown := _shown(rf"hostprep {name}\b", DOCS):
        found += [".SH EXAMPLES", *roff.code(shown)]
    return found + _see_also(["hostprep", *others], SETTINGS)


def _settings() -> list[str]:
    return [
        *_head(SETTINGS, 5, "settings of hostprep"),
        ".SH SYNOPSIS",
        roff.italic(f"/etc/hostprep/{SETTINGS}"),
        ".SH DESCRIPTION",
        "The settings of hostprep, of its service and of its command alike.",
        *roff.blocks(_section("Settings")),
        *_files(),
        *_see_also(["hostprep"], "", ("systemd.exec", 5)),
        *WHERE,
    ]


def _head(name: str, number: int, summary: str) -> list[str]:
    version = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    day = time.strftime("%Y-%m-%d", time.gmtime(_epoch()))
    title = rf'.TH {roff.escape(name.upper())} {number} {day} "hostprep {version}" hostprep'
    return [title, ".SH NAME", roff.line(rf"{roff.escape(name)} \- {roff.prose(summary)}")]


def _epoch() -> int:
    """The time of the pages: SOURCE_DATE_EPOCH, or that of the last commit; without git, README's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    argv = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return int((TOP / "README.md").stat().st_mtime)


def _synopsis(context: click.Context) -> list[str]:
    words = [roff.bold(context.command_path)]
    pieces = context.command.collect_usage_pieces(context)
    for piece in pieces:
        if piece == "[OPTIONS]" and context.parent:
            words += _options(context)
        else:
            words.append(re.sub(r"[A-Z]+", lambda match: roff.italic(match[0]), piece))
    return [".SH SYNOPSIS", *words]


def _options(context: click.Context) -> Iterator[str]:
    for each in context.command.params:
        if isinstance(each, click.Option):
            value = "" if each.is_flag else f" {roff.italic(each.metavar or 'VALUE')}"
            yield f"[{roff.bold(each.opts[0])}{value}]{'...' if each.multiple else ''}"


def _description(command: click.Command) -> list[str]:
    text = cleandoc(command.help or "") + (f"\n\n{command.epilog}" if command.epilog else "")
    return [".SH DESCRIPTION", *(part for each in text.split("\n\n") for part in (".PP", roff.line(roff.plain(each))))]


def _flags(context: click.Context) -> list[str]:
    found = [".SH OPTIONS"]
    for each in context.command.get_params(context):
        if isinstance(each, click.Option) and (record := each.get_help_record(context)):
            words = (re.sub(r"[^ ,]+", lambda word: _flag_or_value(word[0]), record[0]), roff.plain(record[1]))
            found += roff.item(*words)
    return found


def _flag_or_value(word: str) -> str:
    return roff.bold(word) if word.startswith("-") else roff.italic(word)


def _exit_status(command: click.Command) -> list[str]:
    told = dict(EXITS)
    if "exit" in (command.help or ""):
        told["1"] += " The description names another reason."
    return [".SH EXIT STATUS", *(line for code, text in told.items() for line in roff.item(roff.bold(code), text))]


def _environment(command: click.Command) -> list[str]:
    text = "Each setting of " + _page(SETTINGS, 5) + " can be an environment variable, which goes before the file."
    found = [".SH ENVIRONMENT", roff.line(text)]
    module = vars(sys.modules[command.callback.__module__]) if command.callback else {}
    if "engine_address" in module:
        found += roff.item(roff.bold("DOCKER_HOST"), roff.plain("The engine, where HOSTPREP_DOCKER_HOST is not set."))
    return found


def _files() -> list[str]:
    found = [".SH FILES", *roff.item(roff.italic(f"/etc/hostprep/{SETTINGS}"), f"The settings: {_page(SETTINGS, 5)}.")]
    for name, default, text in re.findall(r"^\| `(\w+)` \| `(/\S+)` \| (.*) \|$", _section("Settings"), re.MULTILINE):
        found += roff.item(roff.italic(default), roff.markdown(f"`{name}`: {text.rstrip('.')}."))
    return found


def _see_also(commands: list[str], settings: str, *others: tuple[str, int]) -> list[str]:
    found = [*((name, 8) for name in commands), *([(settings, 5)] if settings else []), *others]
    return [".SH SEE ALSO", ",\n".join(_page(*each) for each in found)]


def _page(name: str, number: int) -> str:
    return rf"{roff.bold(name)}({number})"


def _sentence(command: click.Command) -> str:
    return roff.plain(" ".join(cleandoc(command.help or "").partition("\n\n")[0].split()))


def _summary(command: click.Command) -> str:
    sentence = " ".join(cleandoc(command.help or "").partition("\n\n")[0].split()).removesuffix(".")
    return sentence[:1].lower() + sentence[1:]


def _section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"README.md has no section {heading}")
    return found[1]


def _shown(command: str, text: str) -> list[str]:
    """The lines of code in *text* that begin with *command*, each once; one that ends in a backslash goes on."""
    found = re.findall(rf"^    ({command}(?:.*\\\n)*.*)$", text, re.MULTILINE)
    found = [each for each in found if "[-" not in each]  # a synopsis
    once = {each.partition(" #")[0].strip(): each for each in sorted(found, key=lambda each: " #" in each)}
    return "\n".join(each for each in found if each in once.values()).splitlines()
