"""Remedies as commands, and several combined into one."""

from __future__ import annotations

import pytest

from hostprep.doctor.finding import Apply, Command, Diagnosis, Finding, Prepare, Remedy, Verdict, own_remedies
from hostprep.errors import Conflict


def found(verdict: Verdict = Verdict.BAD, remedy: Remedy | None = None) -> Finding:
    return Finding("check", verdict, "what", remedy=remedy)


def test_command() -> None:
    """A remedy prints as `hostprep apply`, quoted for a shell."""
    assert Apply("").command("mongo") == "hostprep apply mongo"
    assert Apply("", {"label": "a b"}).command("mongo") == "hostprep apply mongo -o 'label=a b'"


def test_contents() -> None:
    """Contents are mended by `hostprep repair`, once what is missing is declared."""
    assert Apply("", contents=True).command("mongo") == "hostprep repair mongo"
    command = Apply("", {"uid": "5"}, contents=True).command("mongo")
    assert command == "hostprep apply mongo -o uid=5 && hostprep repair mongo"


def test_combined() -> None:
    """hostprep's own remedies are combined; commands for the administrator are left out."""
    one = own_remedies(
        [
            found(remedy=Apply("", {"uid": "5"})),
            found(remedy=Command("", "mount /x")),
            found(remedy=Apply("", {"label": "x"})),
        ]
    )
    assert one == [Apply("", {"uid": "5", "label": "x"})]
    assert own_remedies([found(remedy=Command("", "mount /x"))]) == []


def test_contradiction() -> None:
    """Remedies that contradict each other are refused."""
    with pytest.raises(Conflict, match="5 and 6"):
        own_remedies([found(remedy=Apply("", {"uid": "5"})), found(remedy=Apply("", {"uid": "6"}))])


def test_sub_directories() -> None:
    """Each sub-directory has a remedy of its own; those of one are combined, and contradict only each other."""
    one = Prepare("", "/v/one", {"uid": "5"})
    again = Prepare("", "/v/one", {"uid": "5", "recurse": "always"})
    two = Prepare("", "/v/two", {"uid": "6"})
    assert own_remedies([found(remedy=each) for each in (one, two, again)]) == [again, two]
    assert own_remedies([found(Verdict.WARNING, one)]) == []
    with pytest.raises(Conflict, match="5 and 7"):
        own_remedies([found(remedy=one), found(remedy=Prepare("", "/v/one", {"uid": "7"}))])


def test_contested() -> None:
    """Where a person has to say whom the volume is for, nothing is done for anybody."""
    with pytest.raises(Conflict, match="what"):
        own_remedies([found(remedy=Apply("", {"uid": "5"})), Finding("check", Verdict.BAD, "what", contested=True)])


def test_usable() -> None:
    """A volume without a bad finding is usable; the worst verdict is known."""
    assert Diagnosis("mongo", (), ()).usable
    warned = Diagnosis("mongo", (), (found(Verdict.WARNING), found(Verdict.OK)))
    assert (warned.usable, warned.worst) == (True, Verdict.WARNING)
    assert not Diagnosis("mongo", (), (found(Verdict.OK), found(Verdict.BAD))).usable


def test_contents_among_others() -> None:
    """The contents are repaired, too, whichever remedy comes first."""
    one = own_remedies([found(remedy=Apply("", {"uid": "5"})), found(remedy=Apply("", contents=True))])
    assert one == [Apply("", {"uid": "5"}, contents=True)]
