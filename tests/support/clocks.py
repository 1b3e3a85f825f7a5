"""Finds what fails on a slow machine: assertions on how long something took, and limits that are short."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Final

LEAST: Final = 60
"""Seconds that a limit leaves which only keeps a broken test from hanging."""

_CLOCKS: Final = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns", "now"}
_OF_THEM: Final = {"abs", "max", "min", "round", "float", "int", "sum", "sorted", "mean", "median", "quantiles"}
"""What is made of durations with these is a duration."""
_LIMIT_AT: Final = {"eventually": 2, "wait_for": 2}
"""Which argument of these is their limit, if it is no `timeout=`."""


def timed_assertions(source: str) -> list[int]:
    """The lines of assertions that compare a duration, whatever it is called, with something."""
    tree = ast.parse(source)
    names = _Names(tree)
    polls = {id(node) for loop in ast.walk(tree) if isinstance(loop, ast.While | ast.For) for node in ast.walk(loop)}
    found = set()
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Assert)):
        for compared in (each for each in ast.walk(node.test) if isinstance(each, ast.Compare)):
            sides = [compared.left, *compared.comparators]
            # Within a loop, a deadline is what keeps a broken test from hanging.
            late = id(node) not in polls and any(map(names.deadline, sides)) and any(map(names.reading, sides))
            if late or any(map(names.duration, sides)):
                found.add(node.lineno)
    return sorted(found)


def short_limits(source: str) -> list[int]:
    """The lines that wait for something no longer than LEAST."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return sorted({limit.lineno for call in calls for limit in _limits(call) if _is_short(limit)})


def _limits(call: ast.Call) -> Iterator[ast.expr]:
    yield from (keyword.value for keyword in call.keywords if keyword.arg == "timeout")
    if (place := _LIMIT_AT.get(_name(call.func))) is not None:
        yield from call.args[place : place + 1]
        yield from (keyword.value for keyword in call.keywords if keyword.arg == "seconds")


def _is_short(limit: ast.expr) -> bool:
    return isinstance(limit, ast.Constant) and isinstance(limit.value, int | float) and limit.value < LEAST


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class _Names:
    """What the names of a module stand for, those of its functions included: what they return."""

    def __init__(self, tree: ast.Module) -> None:
        self._readings: set[str] = set()
        self._deadlines: set[str] = set()
        self._durations: set[str] = set()
        nodes = list(ast.walk(tree))
        known = -1
        while known != (known := len(self._readings) + len(self._deadlines) + len(self._durations)):
            for node in nodes:
                self._learn(node)

    def reading(self, value: ast.expr) -> bool:
        """Whether it is what a clock shows at some moment."""
        asked = isinstance(value, ast.Call) and not value.args and _name(value.func) in _CLOCKS
        return asked or self._is_in(self._readings, value)

    def deadline(self, value: ast.expr) -> bool:
        """Whether it is a reading and something more."""
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            return self.reading(value.left) or self.reading(value.right)
        return self._is_in(self._deadlines, value)

    def duration(self, value: ast.expr) -> bool:
        """Whether it is a difference of readings, or is made of one."""
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub):
            if self.reading(value.left) or self.reading(value.right):
                return True
        elif isinstance(value, ast.Call) and _name(value.func) not in _OF_THEM:
            return self._is_in(self._durations, value)
        parts = (part for part in ast.iter_child_nodes(value) if isinstance(part, ast.expr))
        return self._is_in(self._durations, value) or any(map(self.duration, parts))

    def _is_in(self, names: set[str], value: ast.expr) -> bool:
        if isinstance(value, ast.Call):
            return f"{_name(value.func)}()" in names
        return isinstance(value, ast.Name | ast.Attribute) and ast.unparse(value) in names

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=[target], value=value):
                self._named(target, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._named(target, value)
            case ast.NamedExpr(target=target, value=value):
                self._named(target, value)
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                self._named(target, value)
            case ast.Call(func=ast.Attribute(attr="append" | "add", value=target), args=[value]):
                self._named(target, value)
            case ast.FunctionDef(name=name):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        self._named(ast.Name(f"{name}()"), inner.value)

    def _named(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for each, part in zip(target.elts, value.elts, strict=False):
                self._named(each, part)
            return
        kinds: list[tuple[Callable[[ast.expr], bool], set[str]]] = [
            (self.reading, self._readings), (self.deadline, self._deadlines), (self.duration, self._durations)
        ]  # fmt: skip
        for kind, names in kinds:
            if kind(value):
                names.add(ast.unparse(target.value if isinstance(target, ast.Subscript) else target))
