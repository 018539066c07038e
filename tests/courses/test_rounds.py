import doctest
from collections import Counter
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pfl.courses.rounds
from p2pfl.courses.rounds import RoundRules
from p2pfl.courses.samplers import _shuffled


@pytest.mark.parametrize(
    ("rules", "clients", "asked", "enough"),
    [
        (RoundRules(), 8, 8, 8),
        (RoundRules(over_selection=0.1, fraction=0.5), 20, 11, 10),  # 10 * (1 + 0.1) is a little more than 11
        (RoundRules(quorum=0.55), 100, 100, 55),  # 100 * 0.55 is a little more than 55
        (RoundRules(fraction=0.5), 5, 2, 2),  # as Python rounds
        (RoundRules(fraction=0.01), 5, 1, 1),
        (RoundRules(over_selection=0.5), 8, 8, 8),  # there are no more than all
        (RoundRules(quorum=0.01), 8, 8, 1),
    ],
)
def test_shares_become_numbers(rules, clients, asked, enough):
    assert (rules.asked(clients), rules.enough(clients)) == (asked, enough)


shares = st.floats(0.001, 1)


@given(shares, st.floats(0, 3), shares, st.integers(1, 500))
def test_a_round_asks_at_least_as_many_as_are_enough_and_never_more_than_there_are(fraction, more, quorum, clients):
    rules = RoundRules(fraction=fraction, over_selection=more, quorum=quorum)
    assert 1 <= rules.enough(clients) <= rules.asked(clients) <= clients


def test_rules_are_given_by_name():
    with pytest.raises(TypeError):
        RoundRules(0.5)


def test_the_docstrings_are_true():
    assert doctest.testmod(p2pfl.courses.rounds).failed == 0


@given(st.integers(0, 60), st.integers(0, 2**32), st.integers(0, 60))
def test_a_draw_is_a_permutation_and_the_same_however_far_it_is_read(clients, seed, read):
    seats = range(100, 100 + clients)
    whole = list(_shuffled(seats, Random(seed)))
    assert sorted(whole) == list(seats)
    assert list(islice(_shuffled(seats, Random(seed)), read)) == whole[:read]


def test_a_draw_from_millions_costs_what_is_read_of_it():
    drawn = list(islice(_shuffled(range(10**9), Random(1)), 100))
    assert len(set(drawn)) == 100
    assert sum(drawn) / 100 == pytest.approx(5e8, rel=0.2)


def test_every_place_is_as_likely_as_any_other():
    counts = Counter(next(_shuffled(range(5), Random(seed))) for seed in range(5000))
    assert all(abs(count - 1000) < 150 for count in counts.values())
