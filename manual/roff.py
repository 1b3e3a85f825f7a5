"""Text, and the little Markdown that README has, as man(7) macros."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

ESCAPES = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
_SPAN = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<italic>[^*]+)\*|\[(?P<link>[^]]+)\]\((?P<to>[^)]+)\)"
)
_WORD = re.compile(r"(?P<flag>(?<![\w-])--?[a-z][\w-]*)|(?P<setting>\bHOSTPREP_[A-Z_]+)")

_ABSENT = ("default", "when absent")


def escape(text: str, escapes: dict[str, str] = ESCAPES) -> str:
    """*text* as it is, in ASCII. A hyphen becomes one that can be pasted into a shell."""
    return "".join(
        escapes.get(each, each) if each.isascii() else rf"\[u{ord(each):04X}]" for each in text.replace("…", "...")
    )


def bold(text: str) -> str:
    return rf"\fB{_whole(text)}\fP"


def italic(text: str) -> str:
    return rf"\fI{_whole(text)}\fP"


def _whole(text: str) -> str:
    """What is typed: no word of it is hyphenated."""
    return " ".join(rf"\%{escape(word)}" for word in text.split())


def plain(text: str) -> str:
    """Prose: hyphens are hyphens, flags and settings are bold."""
    found, at = "", 0
    for match in _WORD.finditer(text):
        found += prose(text[at : match.start()]) + bold(match[0])
        at = match.end()
    return found + prose(text[at:])


def markdown(text: str) -> str:
    """A paragraph of Markdown. A link names its page."""
    found, at = "", 0
    text = text.replace(r"\|", "|")
    for match in _SPAN.finditer(text):
        found += prose(text[at : match.start()])
        if match["code"] or match["bold"]:
            found += bold(match["code"] or match["bold"].replace("`", ""))
        elif match["italic"]:
            found += italic(match["italic"])
        else:
            page = match["to"].partition("#")[0]
            found += prose(match["link"]) + (f" ({prose(page)})" if page not in ("", match["link"]) else "")
        at = match.end()
    return found + prose(text[at:])


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, lists, tables of three columns and indented code of a section of README, as lines of macros."""
    lines = re.sub(r"\n(?: {2})(?=\S)", " ", text)  # a point of a list that goes on
    for block in re.split(r"\n{2,}", lines.strip("\n")):
        if block.startswith("    "):
            yield from code(line[4:] for line in block.splitlines())
        elif block.startswith("|"):
            yield from _table(block)
        elif block.startswith("- "):
            for point in block.removeprefix("- ").split("\n- "):
                yield from (r".IP \[u2022] 2", line(markdown(point)))
        else:
            yield from (".PP", line(markdown(block)))


def _table(block: str) -> Iterator[str]:
    head, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in block.splitlines())
    for what, *cells in rows:
        yield from item(markdown(what), "")
        # What it means comes first, and then what holds where it is not given.
        told = sorted(zip(head[1:], cells, strict=True), key=lambda each: each[0] in _ABSENT)
        lines = (
            f"{title.capitalize()}: {cell}" if title in _ABSENT else _capital(cell) for title, cell in told if cell
        )
        yield "\n.br\n".join(line(markdown(f"{each.rstrip('.')}.")) for each in lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def item(term: str, text: str) -> Iterator[str]:
    """A term, and what it means below it."""
    yield from (".TP", line(term))
    if text:
        yield line(text)


def code(lines: Iterable[str]) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".EX")
    yield from (re.sub(r"^(?=[.'])", r"\\&", escape(each)) for each in lines)
    yield from (".EE", ".RE")


def line(text: str) -> str:
    """Text on lines of at most 80 bytes, each sentence on one of its own. A point at the beginning is no macro."""
    sentences = re.split(r"(?<=\w[.:?]) (?=[A-Z\\])", " ".join(text.split()))
    wrapped = (textwrap.fill(each, 78, break_long_words=False, break_on_hyphens=False) for each in sentences)
    return re.sub(r"^(?=[.'])", r"\\&", "\n".join(wrapped), flags=re.MULTILINE)


def prose(text: str) -> str:
    return escape(text, {key: value for key, value in ESCAPES.items() if key != "-"})
