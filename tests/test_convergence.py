"""What papers promise of their algorithms, on the course files of examples/compare/; their README has the whole."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.compare import STUDIES, cost, played


@pytest.mark.parametrize(
    ("study", "course", "rounds", "target"),
    [
        ("drift", "scaffold", 25, 0.9),
        ("drift", "feddyn", 25, 0.9),
        ("drift", "fedopt", 25, 0.9),
        ("ring", "d2", 65, 0.9),
        ("ring", "gradtrack", 65, 0.9),
        ("tree", "relaysgd", 65, 0.85),
    ],
)
def test_it_is_there_in_rounds_in_which_its_baseline_is_not(
    study: str, course: str, rounds: int, target: float
) -> None:
    seed, baseline = 2 if study == "ring" else 1, STUDIES[study].courses[0]
    assert cost(played(study, course, seed, rounds), target, "rounds") <= rounds
    assert cost(played(study, baseline, seed, rounds), target, "rounds") == math.inf


@pytest.mark.parametrize("course", ["fedbuff", "timeup"])
def test_who_does_not_wait_for_stragglers_is_there_in_half_the_time(course: str) -> None:
    asked = STUDIES["stragglers"].unit
    waiting = cost(played("stragglers", "fedavg", 1, 30), 0.9, asked)
    assert cost(played("stragglers", course, 1, 60), 0.9, asked) <= 0.5 * waiting < math.inf
