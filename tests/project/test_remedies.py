"""Each remedy in doctor's source is tried by a row of a table; what is no command is listed here with the reason."""

from __future__ import annotations

import re
from collections import Counter

from tests.support.host import REPOSITORY
from tests.support.remedies import codes, sentences

TABLES = ("tests/engine/test_remedies.py", "tests/engine/test_subpaths.py", "tests/enforcing/test_remedies.py")
UNTRIED = {
    "not installed": "make install is run by tests/project/test_install.py; here it would need a network",
    "late": "make install, as above",
    "no binding": "the package manager needs a network",
}
"""Commands that no row runs."""
SENTENCES = {
    "diagnose._unknown: volume": "an unreadable record, or a local volume: what is in it only a person can judge",
    "diagnose.shadowed: volume": "the data of the local volume has to be copied out first",
    "diagnose._lost_subpath: directory": "the engine starts no container with this subpath: another has to be made",
    "diagnose._mount: mount": "a container cannot be given another volume: another has to be made",
    "diagnose._made_read_only: mount": "the next start undoes a remount: another container has to be made",
    "diagnose._drift: drift": "a pass runs, which ends by itself",
    "filesystem._flags: read-only": "a file system after an error is for a person to check",
    "installation._engine: engine": "a line in daemon.json; the file may have others",
    "installation._volumes: volume": "the error says what it needs, or doctor NAME does",
    "ownership._check_contents: contents": "files with several links, and devices: a person has to say whose they are",
}
"""Findings that are bad or a warning, without a command."""


def rows() -> set[str]:
    """The codes that the tables bring out, and those that tests ask for by name."""
    text = "".join((REPOSITORY / table).read_text() for table in TABLES)
    return {one or two for one, two in re.findall(r'@brings_out\(\s*"([^"]+)"|\bremedy\(\w+, "([^"]+)"', text)}


def test_codes() -> None:
    """Each place that makes a remedy has a code of its own."""
    found = Counter(codes())
    assert [code for code, times in found.items() if times > 1] == []
    assert len(found) > 40


def test_each_is_tried() -> None:
    """A remedy that no table brings out, and a row for one that is no more, is a fault."""
    assert rows().isdisjoint(UNTRIED)
    assert rows() | UNTRIED.keys() == set(codes())


def test_sentences() -> None:
    """What doctor says without a command is listed, with the reason."""
    assert sentences() == SENTENCES.keys()
