"""Paths as text: which lies below which."""

from __future__ import annotations


def is_below(path: str, above: str) -> bool:
    """Whether the normalized *path* lies strictly below *above*, compared by components."""
    return path.startswith(above.rstrip("/") + "/")


def overlap(one: str, other: str) -> bool:
    """Whether one of two normalized paths is the other, or lies in it."""
    return one == other or is_below(one, other) or is_below(other, one)
