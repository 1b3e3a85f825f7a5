"""Errors in one line of words."""

from __future__ import annotations

import errno
import inspect
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep import errors
from hostprep.errors import HostprepError, Invalid, in_words, printable


def test_what_is_wrong_then_what_to_do() -> None:
    """The message says what is wrong, the hint in parentheses what to do."""
    assert str(Invalid("the mode is odd", hint="write 0750")) == "the mode is odd (write 0750)"
    assert str(Invalid("the mode is odd")) == "the mode is odd"


def test_a_system_error_keeps_its_file_name() -> None:
    """An OSError is told with the file it is about, where there is one."""
    assert in_words(OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/srv/db")) == "/srv/db: No such file or directory"
    assert in_words(OSError(errno.EIO, os.strerror(errno.EIO))) == "Input/output error"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int) -> None:
    """Where the disk or the quota is full, the command that frees space is told."""
    assert "hostprep purge deletes removed volumes" in in_words(OSError(number, os.strerror(number), "/srv/db"))


def test_a_fault_of_hostpreps_own_can_be_found() -> None:
    """Anything unforeseen is told with its type."""
    assert in_words(KeyError("uid")) == "internal error: KeyError: 'uid'"


@pytest.mark.parametrize(
    "kind",
    [
        k
        for _, k in inspect.getmembers(errors, inspect.isclass)
        if issubclass(k, HostprepError) and k.__bases__ != (Exception,)
    ],
)
def test_every_error_says_what_to_do(kind: type[HostprepError]) -> None:
    """The docstring of each error says what is wrong and, behind a colon, what the reader can do about it."""
    wrong, _, remedy = (kind.__doc__ or "").partition(": ")
    assert wrong
    assert remedy


@given(st.text(st.characters(codec=None)))
def test_printable_text_is_one_line(text: str) -> None:
    """Whatever is shown has no control character, no line end and nothing that cannot be encoded."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])))
def test_printable_leaves_readable_text_alone(text: str) -> None:
    """Text that is fit to print is shown as it is."""
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\udcff", "\\udcff"), ("a\u202eb", "a\\u202eb")],
    ids=["line-end", "terminal-escape", "undecodable-byte", "right-to-left-override"],
)
def test_dangerous_text_is_escaped(text: str, shown: str) -> None:
    """Line ends, terminal sequences, undecodable bytes and direction marks are escaped."""
    assert printable(text) == shown
