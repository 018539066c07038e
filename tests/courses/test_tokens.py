from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses.tokens import Account, Generalized, Proactive, Randomized, Simple


@st.composite
def strategies(draw):
    capacity = draw(st.integers(1, 12))
    reactivity = draw(st.integers(1, capacity))
    kinds = [Proactive(), Simple(capacity), Generalized(capacity, reactivity), Randomized(capacity, reactivity)]
    return draw(st.sampled_from(kinds)), capacity


PERIOD, USEFUL, USELESS = "period", "useful", "useless"
happenings = st.lists(st.sampled_from([PERIOD, USEFUL, USELESS]), max_size=200)


def sent_in(account, happening, draw):
    if happening == PERIOD:
        return int(account.grant(draw))
    many = account.reaction(draw, useful=happening == USEFUL)
    account.spend(many)
    return many


@given(strategies(), happenings, st.integers(0, 1000))
def test_tokens_stay_within_the_capacity_and_each_is_spent_once(strategy, happenings, seed):
    (strategy, capacity), draw = strategy, Random(seed)
    account, sent, granted = Account(strategy), 0, 0
    for happening in happenings:
        sent += sent_in(account, happening, draw)
        granted += happening == PERIOD
        assert 0 <= account.tokens <= capacity
        assert account.tokens == granted - sent


@given(strategies(), happenings, st.integers(0, 1000))
def test_no_burst_is_larger_than_the_periods_it_takes_and_the_capacity(strategy, happenings, seed):
    (strategy, capacity), draw = strategy, Random(seed)
    account, balance, least = Account(strategy), 0, 0  # balance: periods less messages
    for happening in happenings:
        balance += (happening == PERIOD) - sent_in(account, happening, draw)
        least = max(least, balance)
        assert least - balance <= capacity


@given(strategies(), st.integers(0, 1000))
def test_who_gets_nothing_sends_once_in_each_period_in_the_long_run(strategy, seed):
    (strategy, capacity), draw = strategy, Random(seed)
    account = Account(strategy)
    sent = sum(account.grant(draw) for _ in range(1000))
    assert 1000 - capacity <= sent <= 1000


@given(strategies(), st.integers(0, 12), st.booleans())
def test_nobody_sends_what_it_has_no_tokens_for(strategy, tokens, useful):
    (strategy, capacity) = strategy
    account = Account(strategy, min(tokens, capacity))
    for seed in range(20):
        assert 0 <= account.reaction(Random(seed), useful=useful) <= account.tokens


def test_a_fraction_of_a_message_is_rounded_at_random_and_right_on_average():
    account, draw = Account(Randomized(8, 3), tokens=7), Random(1)
    found = [account.reaction(draw, useful=True) for _ in range(4000)]
    assert set(found) == {2, 3}
    assert sum(found) / len(found) == pytest.approx(7 / 3, abs=0.03)
    assert account.reaction(draw, useful=False) == 0


@pytest.mark.parametrize(("capacity", "reactivity"), [(10, 5), (20, 10), (4, 2)])
def test_a_randomized_account_holds_as_much_as_theory_says(capacity, reactivity):
    """A C / (C + 1): where a message causes as many as a period does not, R(a) = 1 - P(a)."""
    n, draw = 100, Random(3)
    accounts, under_way, held = [Account(Randomized(capacity, reactivity)) for _ in range(n)], deque(), []
    for period in range(120):
        for account in accounts:
            if account.grant(draw):
                under_way.append(draw.randrange(n))
            for _ in range(len(under_way) // n + (draw.random() < len(under_way) / n % 1)):
                receiver = accounts[under_way.popleft()]
                many = receiver.reaction(draw, useful=True)
                receiver.spend(many)
                under_way.extend(draw.randrange(n) for _ in range(many))
        if period >= 60:
            held.append(sum(account.tokens for account in accounts) / n)
    assert sum(held) / len(held) == pytest.approx(reactivity * capacity / (capacity + 1), rel=0.1)
