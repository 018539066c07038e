import math
from itertools import pairwise, takewhile
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.sim.availability import Availability, AvailabilitySpec

HOUR, DAY = 3600.0, 86_400.0
CHURN = AvailabilitySpec(online_seconds=HOUR, offline_seconds=3 * HOUR)


def spells(availability, seat, until):
    """What it does before some time, as (online, since, until)."""
    found, since = [], 0.0
    for online, end in availability.spells(seat):
        found.append((online, since, end))
        since = end
        if end >= until:
            return found
    raise AssertionError("the last spell has an end")


def share(availability, seats, seconds):
    return fmean(availability.online(seat, seconds) for seat in range(seats))


def test_by_default_everybody_is_always_online():
    plain = Availability(AvailabilitySpec(), 0, 3)
    assert list(plain.spells(1)) == [(True, math.inf)]
    assert not plain.moves(1) and not plain.moves_any and not plain.quiet_seconds


def test_times_are_exponential_and_alternate():
    found = [spell for seat in range(40) for spell in spells(Availability(CHURN, 1, 40), seat, 50 * DAY)]
    on = [until - since for online, since, until in found if online]
    off = [until - since for online, since, until in found if not online]
    assert fmean(on) == pytest.approx(HOUR, rel=0.05)
    assert fmean(off) == pytest.approx(3 * HOUR, rel=0.05)
    assert fmean(seconds > HOUR for seconds in on) == pytest.approx(math.exp(-1), abs=0.02)
    one = spells(Availability(CHURN, 1, 40), 7, 50 * DAY)
    assert all(a[0] != b[0] for a, b in pairwise(one))


@pytest.mark.parametrize("seconds", [0.0, 10 * HOUR, 100 * HOUR])
def test_at_any_time_the_same_share_is_online(seconds):
    assert share(Availability(CHURN, 3, 3000), 3000, seconds) == pytest.approx(0.25, abs=0.025)


def test_by_night_there_are_more():
    """With the numbers of the phones, four times as many as by day."""
    nights = Availability(AvailabilitySpec(HOUR, 3 * HOUR, day_swing=0.7), 0, 3000)
    at = {hour: share(nights, 3000, DAY + hour * HOUR) for hour in range(0, 24, 2)}
    assert max(at, key=at.__getitem__) in (2, 4) and min(at, key=at.__getitem__) in (14, 16)
    assert 3 < max(at.values()) / min(at.values()) < 5.5
    later = Availability(AvailabilitySpec(HOUR, 3 * HOUR, day_swing=0.7, start_hour=12.0), 0, 3000)
    assert share(later, 3000, DAY + 14 * HOUR) > 2 * share(later, 3000, DAY + 2 * HOUR)


def test_fates_depend_on_seed_and_seat_and_nothing_else():
    first, again, other = (Availability(CHURN, seed, 9) for seed in (1, 1, 2))
    assert spells(first, 3, DAY) == spells(again, 3, DAY)
    assert len({str(spells(*one, DAY)) for one in ((first, 3), (first, 4), (other, 3))}) == 3


@given(st.integers(0, 50), st.floats(0, 30 * DAY))
def test_who_is_online_is_what_the_spells_say(seat, seconds):
    availability = Availability(CHURN, 0, 51)
    passed = list(takewhile(lambda spell: spell[1] <= seconds, availability.spells(seat)))
    first = next(availability.spells(seat))[0]
    assert availability.online(seat, seconds) == (first if len(passed) % 2 == 0 else not first)


def test_coordinators_stay_online():
    availability = Availability(CHURN, 0, 3, coordinators=[0])
    assert not availability.moves(0) and availability.moves(1)
    assert list(availability.spells(0)) == [(True, math.inf)]


def traced(folder, text, name="trace.csv", n=4, **spec):
    path = folder / name
    path.write_text(text)
    return Availability(AvailabilitySpec(trace=str(path), **spec), 0, n, coordinators=[0])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "seat,seconds,online\n1,0,false\n1,10.5,true\n\n0,5,0\n1,12,1\n1,20,0\n"),
        ("t.csv", "1,0,0\n1, 10.5, 1\n0,5,False\n1,20,0"),
        (
            "t.jsonl",
            '{"seat":1,"seconds":0,"online":false}\n{"seat":1,"seconds":10.5,"online":true}\n'
            '{"seat":0,"seconds":5,"online":false}\n{"seat":1,"seconds":20,"online":false}\n',
        ),
    ],
)
def test_a_trace_says_who_is_online_even_of_coordinators(tmp_path, name, text):
    found = traced(tmp_path, text, name)
    assert list(found.spells(1)) == [(True, 0.0), (False, 10.5), (True, 20.0), (False, math.inf)]
    assert list(found.spells(0)) == [(True, 5.0), (False, math.inf)]
    assert [found.online(1, seconds) for seconds in (0, 10, 10.5, 19, 20)] == [False, False, True, True, False]
    assert list(found.spells(2)) == [(True, math.inf)]
    assert found.moves(0) and not found.moves(2)
    assert found.quiet_seconds == 20


def test_who_is_not_in_the_trace_comes_and_goes_at_random(tmp_path):
    found = traced(tmp_path, "1,5,0\n", online_seconds=60.0, offline_seconds=60.0)
    assert list(found.spells(1)) == [(True, 5.0), (False, math.inf)]
    assert found.moves(2) and not found.moves(0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1,2\n", "line 1 of .* is '1,2'; it must hold seat, seconds, online"),
        ("seat,seconds,online\none,2,1\n", "line 2 of .* must hold"),
        ("1,2,perhaps\n", "line 1 .* must hold"),
        ("4,2,1\n", "line 1 .* names seat 4; the course has the seats 0 to 3"),
        ("-1,2,1\n", "names seat -1"),
        ("1,-2,1\n", "is at -2.0 s; it must not be before the beginning"),
        ("1,nan,1\n", "is at nan s"),
        ("1,5,1\n2,1,0\n1,4,0\n", "line 3 .* is at 4.0 s, before an earlier line of its seat; sort them"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_by_line(tmp_path, text, what):
    with pytest.raises(ConfigError, match=f"^availability.trace: .*{what}"):
        traced(tmp_path, text)


def test_json_lines_are_refused_by_line_too(tmp_path):
    for text in ('{"seat": 1}', "[1, 2, true]", '{"seat":1,"seconds":0,"online":true,"more":1}', "{"):
        with pytest.raises(ConfigError, match=r"availability.trace: line 1 of .* must hold"):
            traced(tmp_path, text, "t.jsonl")


def test_a_trace_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"availability.trace: .*none.csv cannot be read .*; give a file that exists"):
        Availability(AvailabilitySpec(trace=str(tmp_path / "none.csv")), 0, 3)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        Availability(AvailabilitySpec(trace=str(tmp_path / "bytes.csv")), 0, 3)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"online_seconds": -1.0}, r"online_seconds is -1.0; it must be a number that is not negative"),
        ({"offline_seconds": float("nan")}, r"offline_seconds is nan; it must be a number"),
        ({"online_seconds": 5.0}, r"online_seconds is 5.0 and availability.offline_seconds is 0.0; give both, or none"),
        (
            {"offline_seconds": 5.0},
            r"online_seconds is 0.0 and availability.offline_seconds is 5.0; give both, or none",
        ),
        ({"day_swing": 1.5}, r"day_swing is 1.5; it must lie between 0 and 1"),
        ({"start_hour": 24.0}, r"start_hour is 24.0; it must be at least 0, below 24"),
        ({"trace": "who.txt"}, r"trace is 'who.txt'; it must be a file whose name ends in .csv or .jsonl"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(spec, what):
    with pytest.raises(ConfigError, match=rf"^availability\.{what}"):
        AvailabilitySpec(**spec)
