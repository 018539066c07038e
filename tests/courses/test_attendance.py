import doctest

from hypothesis import given
from hypothesis import strategies as st

import p2pfl.courses.attendance
from p2pfl.courses.attendance import Attendance


def test_the_docstring_is_true():
    assert doctest.testmod(p2pfl.courses.attendance).failed == 0


def test_the_pauses_double_and_end_with_the_first_success():
    attendance, left_out, round = Attendance(after=3), [], 0
    while round < 60:
        if attendance.admits(1, round):
            left_out.append(attendance.failed(1, round))
        round += 1
    assert left_out[:8] == [0, 0, 1, 2, 4, 8, 16, 32]
    assert attendance.came(1)
    assert attendance.admits(1, round)
    assert attendance.failed(1, round) == 0
    assert not attendance.came(1), "it was not left out"


@given(st.lists(st.booleans()), st.integers(0, 100))
def test_zero_leaves_nobody_out(came, round):
    attendance = Attendance(after=0)
    for number, success in enumerate(came):
        assert attendance.admits(1, number)
        if success:
            assert not attendance.came(1)
        else:
            assert attendance.failed(1, number) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200), st.integers(1, 4))
def test_nobody_is_left_out_for_what_another_did_or_for_longer_than_64_rounds(fates, after):
    attendance = Attendance(after)
    failures = dict.fromkeys(range(4), 0)
    for round, (seat, success) in enumerate(fates):
        if success:
            attendance.came(seat)
            failures[seat] = 0
        else:
            failures[seat] += 1
            assert attendance.failed(seat, round) <= 64
        for other, count in failures.items():
            assert attendance.admits(other, round + 65)
            if count < after:
                assert attendance.admits(other, round + 1)
