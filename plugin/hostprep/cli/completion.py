"""What a shell completes: commands and flags, which click knows, and what their metavars name. See completions/."""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import typing

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class

from ..host.looking import look
from ..options import ALIAS, KNOWN, Options
from ..settings import Settings


@add_completion_class
class _Words(ShellComplete):
    """For _HOSTPREP_COMPLETE=words_complete: the words up to the cursor are in COMP_WORDS, a line each.

    They are no arguments: for a hostprep that does not know this, `rm NAME` would be a command. The answer is a line
    for each candidate: kind, candidate, help, with tabs between. Of a path (dir, file) it has what stands before it.
    """

    name = "words"
    source_template = ""
    _before = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        _, *words, last = os.environ["COMP_WORDS"].split("\n")
        flag, equals, value = last.partition("=")
        if not flag.startswith("--") or not equals:
            return words, last
        self._before = f"{flag}="
        return [*words, flag], value

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type}\t{self._before}{item.value}\t{item.help or ''}"


def complete_parameters(command: click.Command) -> None:
    """Let the metavar of each parameter of *command* say how it is completed."""
    for parameter in command.params:
        parameter.shell_complete = functools.partial(_complete, parameter)  # type: ignore[method-assign]


def _complete(parameter: click.Parameter, context: click.Context, incomplete: str) -> list[CompletionItem]:
    metavar = (parameter.metavar or str(parameter.name).upper()).strip("[].")
    key, equals, _ = incomplete.partition("=")
    if metavar == "KEY=VALUE" and equals and key in ("path", ALIAS):
        return [CompletionItem(f"{key}=", type="dir")]
    if metavar in ("DIR", "FILE") or (metavar == "PATH" and isinstance(parameter, click.Argument)):
        return [CompletionItem("", type="file" if metavar == "FILE" else "dir")]
    words = metavar.split("|") if "|" in metavar else []
    if metavar == "KEY=VALUE" and equals:
        kinds = typing.get_args(typing.get_type_hints(Options).get(key))
        enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
        words = [f"{key}={member.value}" for kind in enums for member in kind]
        words += ["label=container_file_t", "label=none"]
    elif metavar in ("KEY=VALUE", "KEY"):
        from ..tree.directory import ACCEPTED

        given, known = context.params.get("given") or (), ACCEPTED if context.info_name == "prepare" else KNOWN
        words = [each + metavar[3:4] for each in known if each not in given]
    elif metavar in ("NAME", "ID"):
        words = _on_disk(context, metavar)
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _on_disk(context: click.Context, metavar: str) -> list[str]:
    """The names, or the IDs in the trash, that can be meant; none where they cannot be read, as by other users."""
    flags = {f"HOSTPREP_{key.upper()}": value for key, value in context.find_root().params.items() if value}

    def read(command: str) -> list[str]:
        from ..volumes import driver, trash

        opened = driver.Driver.open(Settings.read({**os.environ, **flags}), create=False)
        if metavar == "ID" or command == "restore":
            removed = trash.entries(opened.store)
            return [each.id if metavar == "ID" else each.record.name for each in removed if each.record]
        if command == "create" or context.params.get("retained"):
            return [each["name"] for each in opened.retained_volumes()]
        return [] if command == "import" else [name for name, _ in opened.volumes()]

    with contextlib.suppress(OSError):  # the other process could not read them, and says nothing to the terminal
        ((_, _, found),) = look([str(context.info_name)], read)  # its disk may hang
        return list(dict.fromkeys(found or ()))
    return []
