import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pfl.courses.staleness
from p2pfl.courses.staleness import Staleness
from p2pfl.errors import ConfigError

KINDS = ["polynomial", "hinge", "exponential", "constant"]


@given(st.sampled_from(KINDS), st.floats(0, 20), st.floats(0, 20), st.integers(0, 500))
def test_who_is_staler_keeps_no_more_and_who_is_not_keeps_all(kind, a, b, versions):
    keeps = Staleness(kind, a, b)
    assert keeps(0) == 1
    assert 0 <= keeps(versions + 1) <= keeps(versions) <= 1


def test_each_kind_is_what_it_is_called():
    assert [Staleness(kind, 0.5, 1.0)(3) for kind in KINDS] == [0.5, 0.5, math.exp(-1.5), 1.0]


def test_the_docstrings_are_true():
    assert doctest.testmod(p2pfl.courses.staleness).failed == 0


@pytest.mark.parametrize(("wrong", "field"), [({"kind": "linear"}, ""), ({"a": -1.0}, "_a"), ({"b": -1.0}, "_b")])
def test_what_cannot_be_is_refused_by_name(wrong, field):
    with pytest.raises(ConfigError, match=rf"^course\.discount{field} is "):
        Staleness(**wrong)
