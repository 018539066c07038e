from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses.view import Seen, View, sampled
from p2pfl.errors import RemoteProtocolError

MOST = 9
deeds = st.lists(
    st.tuples(st.sampled_from(["note", "join", "leave"]), st.integers(0, 3), st.integers(0, MOST)), max_size=12
)


def view(done) -> View:
    found = View(4)
    for name, seat, round in done:
        found.leave(seat) if name == "leave" else getattr(found, name)(seat, round)
    return found


@given(deeds, deeds, deeds)
def test_views_merge_in_any_order_and_however_often(a, b, c):
    one, other = view(a), view(a)
    for seen in (view(b).seen, view(c).seen):
        one.merge(seen, MOST)
    for seen in (view(c).seen, view(b).seen, view(c).seen, other.seen):
        other.merge(seen, MOST)
    assert one.seen == other.seen
    assert one.round == max(view(done).round for done in (a, b, c))


def test_who_has_left_is_away_until_it_joins_again_whatever_was_heard_before():
    there = View(3)
    before = there.seen
    there.note(1, 4)
    there.leave(1)
    there.leave(1)
    there.merge(before, MOST)
    assert there.active(5, 0) == [0, 2] and there.seen.presence == (1, 2, 1)
    there.join(1, 5)
    assert there.active(5, 0) == [0, 1, 2] and there.seen == Seen((0, 5, 0), (1, 3, 1))


def test_who_did_nothing_for_long_is_not_active():
    there = View(3)
    there.note(1, 4)
    there.note(1, 2)
    assert there.active(6, 2) == [1] and there.active(7, 2) == [] and there.active(7, 0) == [0, 1, 2]


@pytest.mark.parametrize(
    "seen", [Seen((0, 0), (1, 1)), Seen((0, 0, 0), (1, 1)), Seen((0, 10, 0), (1, 1, 1)), Seen((0, 0, 0), (1, -1, 1))]
)
def test_what_is_no_view_of_these_seats_is_refused(seen):
    with pytest.raises(RemoteProtocolError, match="none of 3 seats up to round 10"):
        View(3).merge(seen, MOST)


def test_everybody_is_sampled_about_as_often():
    """Binomial: of 1000 rounds with a tenth of all, each is in 100, with a deviation of 9.5."""
    load = Counter(seat for round in range(1000) for seat in sampled(range(100), round)[:10])
    assert sum(load.values()) == 10_000 and len(load) == 100
    assert min(load.values()) >= 70 and max(load.values()) <= 130
    assert sum((count - 100) ** 2 for count in load.values()) / 100 == pytest.approx(90, rel=0.35)


def test_who_goes_moves_nobody_else():
    assert [seat for seat in sampled(range(9), 3) if seat != 4] == list(sampled([0, 1, 2, 3, 5, 6, 7, 8], 3))
