"""Remedies as commands, and several combined into one."""

from __future__ import annotations

import pytest

from hostprep.doctor.finding import Apply, Diagnosis, Finding, Verdict, combined_remedy
from hostprep.errors import Conflict


def found(verdict: Verdict = Verdict.BAD, remedy: Apply | str = "") -> Finding:
    return Finding("check", verdict, "what", remedy=remedy)


def test_command() -> None:
    """A remedy prints as `hostprep apply`, quoted for a shell."""
    assert Apply().command("mongo") == "hostprep apply mongo"
    assert Apply({"label": "a b"}).command("mongo") == "hostprep apply mongo -o 'label=a b'"


def test_contents() -> None:
    """Contents are mended by `hostprep repair`, once what is missing is declared."""
    assert Apply(contents=True).command("mongo") == "hostprep repair mongo"
    command = Apply({"uid": "5"}, contents=True).command("mongo")
    assert command == "hostprep apply mongo -o uid=5 && hostprep repair mongo"


def test_combined() -> None:
    """hostprep's own remedies are combined; commands for the administrator are left out."""
    one = combined_remedy(
        [found(remedy=Apply({"uid": "5"})), found(remedy="mount /x"), found(remedy=Apply({"label": "x"}))]
    )
    assert one == Apply({"uid": "5", "label": "x"})
    assert combined_remedy([found(remedy="mount /x")]) is None


def test_contradiction() -> None:
    """Remedies that contradict each other are refused."""
    with pytest.raises(Conflict, match="5 and 6"):
        combined_remedy([found(remedy=Apply({"uid": "5"})), found(remedy=Apply({"uid": "6"}))])


def test_usable() -> None:
    """A volume without a bad finding is usable; the worst verdict is known."""
    assert Diagnosis("mongo", (), ()).usable
    warned = Diagnosis("mongo", (), (found(Verdict.WARNING), found(Verdict.OK)))
    assert (warned.usable, warned.worst) == (True, Verdict.WARNING)
    assert not Diagnosis("mongo", (), (found(Verdict.OK), found(Verdict.BAD))).usable


def test_contents_among_others() -> None:
    """The contents are repaired, too, whichever remedy comes first."""
    one = combined_remedy([found(remedy=Apply({"uid": "5"})), found(remedy=Apply(contents=True))])
    assert one == Apply({"uid": "5"}, contents=True)
