"""Paths as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.host.paths import is_below, overlap


@pytest.mark.parametrize(
    ("path", "above", "below"),
    [
        ("/srv/a", "/srv", True),
        ("/srv", "/srv", False),
        ("/srvx", "/srv", False),
        ("/srv/a/b", "/srv/a", True),
        ("/srv/ab", "/srv/a", False),
        ("/a", "/", True),
    ],
)
def test_below_is_by_components(path: str, above: str, below: bool) -> None:  # noqa: FBT001
    """Below means strictly, and by components: /srvx is not below /srv."""
    assert is_below(path, above) is below


@given(st.lists(st.sampled_from(["a", "ab", "b"]), min_size=1), st.lists(st.sampled_from(["a", "ab", "b"]), min_size=1))
def test_overlap_is_one_list_beginning_the_other(one: list[str], other: list[str]) -> None:
    """Two paths overlap when the components of one begin those of the other, whichever is asked about."""
    short = min(len(one), len(other))
    expected = one[:short] == other[:short]
    assert overlap("/" + "/".join(one), "/" + "/".join(other)) is expected
    assert overlap("/" + "/".join(other), "/" + "/".join(one)) is expected
