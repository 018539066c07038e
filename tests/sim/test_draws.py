from math import log
from statistics import fmean, pstdev

import pytest

from p2pfl.sim.draws import lognormal, uniform


def test_numbers_are_spread_evenly_and_depend_on_all_that_is_named():
    numbers = [uniform(3, "seat", number) for number in range(2000)]
    assert all(0 < number < 1 for number in numbers)
    assert fmean(numbers) == pytest.approx(0.5, abs=0.02)
    assert pstdev(numbers) == pytest.approx(12**-0.5, abs=0.01)
    assert len({uniform(3, "a"), uniform(4, "a"), uniform(3, "b"), uniform(3, "a", "b")}) == 4


def test_logarithms_are_normal():
    logarithms = [log(lognormal(0.5, "x", number)) for number in range(2000)]
    assert fmean(logarithms) == pytest.approx(0, abs=0.04)
    assert pstdev(logarithms) == pytest.approx(0.5, abs=0.03)
    assert lognormal(0.0, "x") == 1.0
