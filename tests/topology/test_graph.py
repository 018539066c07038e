import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.topology import Topology
from p2pfl.topology.fixed import chain, exponential, hierarchy, hypercube, ring, star, torus


@pytest.mark.parametrize(
    ("topology", "text"),
    [
        (torus(16), "<Topology torus: 16 seats, 32 edges, degree 4>"),
        (star(8), "<Topology star: 8 seats, 7 edges, degree 1..7>"),
        (exponential(8), "<Topology exponential: 8 seats, 24 directed edges, degree 3>"),
        (Topology.from_edges(3, [(0, 1)]), "<Topology custom: 3 seats, 1 edges, degree 0..1, not connected>"),
    ],
)
def test_repr_is_one_line_worth_logging(topology: Topology, text: str) -> None:
    assert repr(topology) == text


def test_topology_is_a_value() -> None:
    assert ring(5) == ring(5) != chain(5)
    assert len({ring(5), ring(5)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        ring(5).family = "other"  # type: ignore[misc]  # the point of the test


def test_loops_are_dropped_and_repeats_merged() -> None:
    assert Topology.from_edges(3, [(0, 0), (0, 1), (1, 0), (1, 2)]).edges == ((0, 1), (1, 2))


def test_directed_edges_have_senders() -> None:
    one_way = Topology.from_edges(3, [(0, 1), (1, 2)], directed=True)
    assert (one_way.neighbors(1), one_way.senders(1)) == ((2,), (0,))
    assert one_way.edges == ((0, 1), (1, 2))
    assert not one_way.is_symmetric
    assert not one_way.is_connected  # 2 reaches nobody
    circle = Topology.from_edges(3, [(0, 1), (1, 2), (2, 0)], directed=True)
    assert circle.is_connected
    assert Topology.from_edges(2, [(0, 1), (1, 0)], directed=True).is_symmetric


def test_an_unreached_root_is_not_connected() -> None:
    assert not Topology.from_edges(3, [(0, 1), (1, 2), (2, 1)], directed=True).is_connected


def test_hierarchy_has_parents_and_children() -> None:
    tree = hierarchy(11, edges=2)
    assert tree.parent(0) is None
    assert tree.children(0) == (1, 2)
    assert tree.children(1) == (3, 4, 5, 6)
    assert {tree.parent(client) for client in range(7, 11)} == {2}
    assert [tree.role(seat) for seat in (0, 1, 2, 3)] == ["server", "edge", "edge", "client"]


def test_a_ring_has_no_parents() -> None:
    with pytest.raises(ConfigError, match="'ring' has no parents and children: choose a tree"):
        ring(4).parent(1)


def test_names_and_roles_default() -> None:
    assert (ring(3).name(2), ring(3).role(2)) == ("2", "peer")
    named = ring(3).with_members(["a", "b", "c"], ["server", "client", "client"])
    assert (named.name(0), named.role(0)) == ("a", "server")
    assert star(3).with_members("abc").role(0) == "server"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Topology(()), "n must be at least 1"),
        (lambda: Topology.from_edges(2, [(0, 2)]), r"edge \(0, 2\) leaves the seats 0..1"),
        (lambda: ring(3).with_members(["a", "b"]), "names must have one entry for each of the 3 seats, and has 2"),
        (lambda: ring(3).with_members("aab"), "'a' stands at two seats"),
        (lambda: Topology(((1, 1), (0,))), "neighbors of seat 0 must be distinct"),
        (lambda: Topology(((3,), (0,))), "seat 0 has a neighbor outside"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]  # a lambda of the table above


def test_a_topology_is_its_own_schedule() -> None:
    fixed = hypercube(8)
    assert fixed.period == 1
    assert fixed.at(7) is fixed is fixed.union


edge_sets = st.integers(1, 9).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
)


@given(edge_sets)
def test_undirected_graphs_are_symmetric_and_rebuild_from_their_edges(drawn: tuple[int, set[tuple[int, int]]]) -> None:
    n, edges = drawn
    topology = Topology.from_edges(n, edges)
    assert topology.is_symmetric
    assert sum(map(topology.degree, range(n))) == 2 * len(topology.edges)
    assert Topology.from_edges(n, topology.edges) == topology
    assert Topology.from_edges(n, topology.edges).fingerprint == topology.fingerprint


def test_fingerprint_is_the_same_everywhere() -> None:
    assert ring(5).fingerprint == "8970e819075e43a3"
    assert ring(5).with_members("abcde").fingerprint == ring(5).fingerprint != ring(6).fingerprint


def test_importing_the_package_costs_little() -> None:
    heavy = {"numpy", "networkx", "torch", "aiohttp", "matplotlib"}
    code = f"import sys, p2pfl.topology; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
