"""Lines about a peer: never more than ten in a second, and none is lost without being counted."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from p2pfl.node.quota import LINES_PER_SECOND, LineQuota


def test_the_next_line_says_how_many_were_held_back() -> None:
    quota = LineQuota(0.0)
    endings = [quota.take(0.0) for _ in range(62)]
    assert endings == [""] * 5 + [None] * 57
    assert [quota.take(0.25), quota.take(0.5)] == [" ... and 57 more", ""]


@given(st.lists(st.sampled_from([0.0, 1 / 64, 1 / 8, 1 / 4, 1.0, 5.0]), max_size=200))
def test_no_second_has_more_and_all_are_counted(pauses: list[float]) -> None:
    quota, said, counted, held = LineQuota(0.0), [], 0, 0
    for now in itertools.accumulate(pauses):
        ending = quota.take(now)
        if ending is None:
            held += 1
        else:
            said.append(now)
            counted += 1 + int("".join(re.findall(r"\d+", ending)) or 0)
            held = 0
    assert counted + held == len(pauses)
    assert all(late - early >= 1 for early, late in zip(said, said[LINES_PER_SECOND:], strict=False))
