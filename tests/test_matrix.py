"""Every course, wherever it is played, through what may happen to it. A course is one line of tests/matrix/table.py."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.matrix.places import Hashes, in_memory, on_hosts, simulated
from tests.matrix.table import COURSES, prepared, unlisted

every_course = pytest.mark.parametrize("name", COURSES)
ROUNDS, PAUSE = 3, 1
MANY = 12  # rounds, so that it is in the midst of them that something happens
LAST = -1


@cache
def undisturbed(name: str, rounds: int = ROUNDS) -> Hashes:
    """What the simulation gives."""
    return simulated(prepared(name, rounds=rounds))


def tolerant(name: str) -> dict[str, object]:
    """Settings by which a course goes on without one who is gone."""
    line = COURSES[name]
    star = line.family == "star" and line.in_step  # in a hierarchy an edge may not have met all of its own by then
    return {"rounds": MANY, "rejoin_seconds": 0.3, **({"quorum": 0.5} if star else {})}


def agrees(name: str, found: Hashes, rounds: int = ROUNDS) -> None:
    """All have come to the end, with the models of the simulation if there is just one way to go."""
    if COURSES[name].in_step:
        assert found == undisturbed(name, rounds)
    else:
        assert len(found) == len(undisturbed(name, rounds)) and all(found)


def test_no_course_is_missing():
    assert not unlisted()


@every_course
class TestInASimulation:
    def test_plain(self, name):
        assert all(undisturbed(name))

    def test_a_node_is_lost(self, name):
        setup = prepared(name, **tolerant(name))
        lost = setup.topology.n - 1
        found = simulated(setup, lost)
        assert [seat for seat, model in enumerate(found) if model is None] == [lost]


@every_course
class TestOverLinksInMemory:
    def test_plain(self, name):
        agrees(name, in_memory(prepared(name, rounds=ROUNDS)))

    def test_a_node_is_lost(self, name):
        setup = prepared(name, **tolerant(name))
        lost = setup.topology.n - 1
        found = in_memory(setup, lost)
        assert [seat for seat, model in enumerate(found) if model is None] == [lost]

    def test_resumed_in_the_middle(self, name):
        agrees(name, in_memory(prepared(name, rounds=ROUNDS), pause=PAUSE))


@every_course
@pytest.mark.sockets(patient=True)
class TestBetweenProcesses:
    def test_plain(self, name, tmp_path: Path):
        agrees(name, on_hosts(prepared(name, rounds=ROUNDS), tmp_path))

    def test_a_node_is_lost(self, name, tmp_path: Path):
        setup = prepared(name, **tolerant(name))
        lost = setup.topology.n - 1
        found = on_hosts(setup, tmp_path, lost=lost)
        assert [seat for seat, model in enumerate(found) if model is None] == [lost]

    def test_resumed_in_the_middle(self, name, tmp_path: Path):
        found = on_hosts(prepared(name, rounds=MANY), tmp_path, again=0)
        assert all(found)
