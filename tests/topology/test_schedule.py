import pytest

from p2pfl.topology import Cycle, Drawn, Schedule, Topology, build
from p2pfl.topology.varying import epidemic_local, one_peer_exponential, random_matching


def test_reprs() -> None:
    assert repr(one_peer_exponential(8)) == "<Cycle one-peer-exponential: 8 seats, period 3>"
    assert repr(random_matching(8, 5)) == "<Drawn random-matching: 8 seats, anew every round, seed 5>"


def test_cycle_repeats_and_unites() -> None:
    cycle = one_peer_exponential(8)
    assert cycle.at(4) == cycle.at(1)
    assert cycle.union.adjacency == build("exponential", 8).union.adjacency


def test_drawn_rounds_depend_on_seed_and_round_only() -> None:
    first, second = random_matching(10, 3), random_matching(10, 3)
    later = second.at(50)  # out of order
    assert [first.at(t) for t in range(51)][50] == later
    assert first.at(0) != first.at(1)
    assert random_matching(10, 4).at(0) != first.at(0)


def test_drawn_remembers_only_recent_rounds() -> None:
    drawn = random_matching(6)
    assert drawn.at(0) is drawn.at(0)
    for t in range(100):
        drawn.at(t)
    assert len(drawn._recent) == 8


def test_every_round_stays_within_the_union() -> None:
    for schedule in (epidemic_local(9, 2), build("matcha", 9), build("base", 9, k=2)):
        allowed = set(schedule.union.edges)
        assert all(set(schedule.at(t).edges) <= allowed for t in range(20))


@pytest.mark.parametrize("family", ["one-peer-exponential", "random-matching", "star"])
def test_members_reach_every_round(family: str) -> None:
    schedule = build(family, 4).with_members("abcd", ["server", "client", "client", "client"])
    for topology in (schedule.at(3), schedule.union):
        assert (topology.name(2), topology.role(0)) == ("c", "server")


def test_all_three_kinds_are_schedules() -> None:
    def names(schedule: Schedule) -> str:  # mypy checks the calls below
        return schedule.family

    assert names(Topology.from_edges(1, [])) == "custom"
    assert names(Cycle((Topology.from_edges(1, []),), "c")) == "c"
    assert names(Drawn(Topology.from_edges(2, [(0, 1)]), lambda rng: [])) == "custom"
