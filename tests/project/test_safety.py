"""What the documents about safety and reliability promise names tests that are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.host import REPOSITORY

_NAMED = re.compile(r"`(test_\w+\.py)::([\w:]+)`")


def defined_in(module: str) -> set[str]:
    """The tests of a module, or of several of that name, as pytest calls them, `test_it` and `TestThing::test_it`."""
    found: set[str] = set()
    for file in (REPOSITORY / "tests").rglob(module):
        tree = ast.parse(file.read_text())
        found |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(
    ("page", "least"), [("safety.md", 41), ("threat-model.md", 41), ("reliability.md", 20), ("swarm.md", 10)]
)
def test_every_test_that_is_named_is_there(page: str, least: int) -> None:
    """Each promise names tests, and each of them exists."""
    text = (REPOSITORY / "docs" / page).read_text()
    named = _NAMED.findall(text)
    assert len(named) >= least
    assert len(named) == text.count("test_") - text.count("::test_")  # none is spelled in another way
    assert [f"{module}::{test}" for module, test in named if test not in defined_in(module)] == []


def test_every_attack_is_in_it() -> None:
    """No attack is without the promise that it tries."""
    named = {test for module, test in _NAMED.findall((REPOSITORY / "docs" / "safety.md").read_text())}
    attacks = {test for test in defined_in("test_attacks.py") if test.rpartition("::")[2].startswith("test_")}
    assert attacks <= named
