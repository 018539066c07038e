"""Strikes and quarantines, against the rules as they are written and a history that is simply kept."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2pfl.node.conduct import Conduct
from p2pfl.node.settings import NodeSettings

SETTINGS = NodeSettings()
MINUTE, DAY = 60.0, 86_400.0


def test_the_third_strike_within_ten_minutes_is_a_quarantine_of_ten_minutes() -> None:
    conduct = Conduct(SETTINGS)
    assert [conduct.strike(now) for now in (0.0, 300.0, 599.0)] == [False, False, True]
    assert conduct.quarantine(600.0) == 599.0
    assert conduct.quarantine(1199.0) == 0
    assert [conduct.strike(now) for now in (1200.0, 1201.0)] == [False, False]  # all begin anew


def test_strikes_that_led_to_a_quarantine_do_not_lead_to_the_next() -> None:
    conduct = Conduct(NodeSettings(quarantine_seconds=1.0))
    assert [conduct.strike(now) for now in (0.0, 0.0, 0.0, 2.0, 2.0, 2.0)] == [False, False, True] * 2
    assert conduct.quarantine(2.0) == 2.0


def test_strikes_are_forgotten_after_ten_minutes() -> None:
    conduct = Conduct(SETTINGS)
    assert not any(conduct.strike(now) for now in (0.0, 1.0, 600.0, 601.0, 1200.0, 1201.0))


def test_quarantines_double_up_to_a_day() -> None:
    conduct, now, terms = Conduct(SETTINGS), 0.0, []
    for _ in range(10):
        assert [conduct.strike(now) for _ in range(3)] == [False, False, True]
        terms.append(conduct.quarantine(now))
        now += terms[-1]
    assert terms == [10 * MINUTE * 2**n for n in range(8)] + [DAY, DAY]


def test_a_day_outside_of_quarantine_wipes_the_slate_clean() -> None:
    conduct = Conduct(SETTINGS)
    for _ in range(3):
        conduct.strike(0.0)
    assert not conduct.spotless(10 * MINUTE + DAY - 1)
    assert conduct.spotless(10 * MINUTE + DAY)
    assert not conduct.strike(10 * MINUTE + DAY)
    assert not conduct.spotless(10 * MINUTE + DAY)
    assert [conduct.strike(10 * MINUTE + DAY) for _ in range(2)] == [False, True]
    assert conduct.quarantine(10 * MINUTE + DAY) == 10 * MINUTE


pauses = st.lists(st.sampled_from([0.0, 1.0, 199.0, 300.0, 600.0, 1200.0, 40_000.0, DAY]), max_size=60)


@given(pauses)
def test_any_history_is_judged_by_the_rules(pauses: list[float]) -> None:
    """The oracle keeps all strikes and all quarantines, and looks at them anew each time."""
    conduct = Conduct(SETTINGS)
    strikes: list[float] = []
    terms: list[tuple[float, float]] = []  # beginnings and ends
    for now in itertools.accumulate(pauses):
        inside = bool(terms) and now < terms[-1][1]
        assert conduct.quarantine(now) == (terms[-1][1] - now if inside else 0)
        recent = [] if inside else [strike for strike in strikes if now - strike < 10 * MINUTE]
        forgiven = not terms or now >= terms[-1][1] + DAY
        assert conduct.spotless(now) == (not inside and not recent and forgiven)
        begins = conduct.strike(now)
        assert begins == (not inside and len(recent) == 2)
        if begins:
            last = terms[-1][1] - terms[-1][0] if terms and not forgiven else 5 * MINUTE
            terms.append((now, now + min(2 * last, DAY)))
            strikes = []
        elif not inside:
            strikes.append(now)


@given(pauses, st.lists(st.sampled_from([0.0, 1.0, 300.0, 600.0]), max_size=10))
def test_a_spotless_conduct_is_as_good_as_a_new_one(before: list[float], after: list[float]) -> None:
    old, new, now = Conduct(SETTINGS), Conduct(SETTINGS), 0.0
    for now in itertools.accumulate(before):
        old.strike(now)
    now += 2 * DAY + 10 * MINUTE
    assert old.spotless(now)
    for late in itertools.accumulate(after, initial=now):
        assert old.strike(late) == new.strike(late)
        assert old.quarantine(late) == new.quarantine(late)


def test_a_ban_is_the_longest_quarantine_whatever_was_before() -> None:
    for strikes in range(4):
        conduct = Conduct(SETTINGS)
        for _ in range(strikes):
            conduct.strike(0.0)
        conduct.ban(1.0)
        assert conduct.quarantine(1.0) == DAY
        assert not conduct.strike(2.0), "there is nothing to add"
        assert [conduct.strike(DAY + 1.0) for _ in range(3)] == [False, False, True]
        assert conduct.quarantine(DAY + 1.0) == DAY
        assert not conduct.spotless(2 * DAY + 1.0)
