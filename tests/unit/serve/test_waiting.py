"""How many requests may wait, and whom they keep from waiting."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from hostprep.errors import Busy
from hostprep.serve import waiting
from hostprep.serve.waiting import Request, Waiting


def enter(stack: ExitStack, among: Waiting, count: int, verb: str, volume: str, *, since: float = 0.0) -> list[Request]:
    """So many requests under way; they have waited for *since* seconds."""
    found = [stack.enter_context(among.request(verb, volume, 100)) for _ in range(count)]
    for each in found:
        each.since -= since
    return found


def refused(among: Waiting, verb: str, volume: str, patience: float = 100) -> str:
    try:
        with among.request(verb, volume, patience):
            return ""
    except Busy as exc:
        return exc.message


def test_so_many_wait() -> None:
    """32 requests of a kind wait for a volume; the next is refused, and others for it and for other volumes are not."""
    among = Waiting(str)
    with ExitStack() as stack:
        enter(stack, among, 32, "Mount", "mongo", since=2)
        assert refused(among, "Mount", "mongo") == "32 requests Mount for volume mongo wait already"
        assert refused(among, "Get", "mongo") == ""
        assert refused(among, "Mount", "redis") == ""
    assert refused(among, "Mount", "mongo") == ""
    assert among._under_way == {}


def test_at_once() -> None:
    """Requests that do not wait are no burden: 200 of them may be there at once."""
    among = Waiting(str)
    with ExitStack() as stack:
        enter(stack, among, 199, "Get", "mongo")
        assert refused(among, "Get", "mongo") == ""
        enter(stack, among, 1, "Get", "mongo")
        assert refused(among, "Get", "mongo") == "200 requests Get for volume mongo wait already"


def test_in_a_crowd() -> None:
    """Where many wait in all, who waits for a volume for which nobody does is let in, and the others are refused."""
    among = Waiting(str)
    with ExitStack() as stack:
        for number in range(25):
            enter(stack, among, 20, "Mount", f"v{number}", since=2)
        assert refused(among, "Mount", "v3") == "20 requests Mount for volume v3 wait already"
        assert refused(among, "Mount", "quick") == ""


def test_one_that_hangs() -> None:
    """While a request hangs, who would not wait as long is refused, and who is more patient waits."""
    among = Waiting(str)
    with ExitStack() as stack:
        (hanging,) = enter(stack, among, 1, "Get", "mongo", since=11)
        assert refused(among, "Get", "mongo", 10) == ""
        hanging.hangs = True
        assert refused(among, "Get", "mongo", 10) == "the disk of volume mongo does not answer"
        assert refused(among, "Mount", "mongo", 100) == ""


@pytest.mark.parametrize(("hanging", "refuses"), [(99, False), (100, True)])
def test_many_hang(hanging: int, *, refuses: bool) -> None:
    """Where a hundred hang, other volumes of their file system are refused, by the mount table; others are not."""
    among = Waiting(lambda name: "/proc/1" if name == "quick" else "/nowhere")
    assert waiting._MANY_HANG == 100
    with ExitStack() as stack:
        for number in range(hanging):
            (each,) = enter(stack, among, 1, "Get", f"v{number}", since=11)
            each.hangs = True
        assert bool(refused(among, "Get", "another")) is refuses
        assert refused(among, "Get", "quick") == ""
