"""Seeds that hosts agree on."""

import doctest

from p2pfl.courses import seeds
from p2pfl.courses.seeds import seed_of


def test_seeds_are_the_same_on_every_host() -> None:
    """Known values: another one would change every result that was ever published."""
    assert seed_of(0, "cohort", 0) == 7288011320218236492
    assert len({seed_of(0, "fit", number, seat) for number in range(30) for seat in range(30)}) == 900
    assert 0 <= seed_of("x") < 2**63


def test_the_docstrings_are_true() -> None:
    assert doctest.testmod(seeds).failed == 0
