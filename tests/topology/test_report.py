import math

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.topology import Topology, build
from p2pfl.topology.report import describe, diameter


def test_a_torus() -> None:
    assert describe(build("torus", 16)).rows() == [
        ("family", "torus"),
        ("seats", "16"),
        ("edges", "32"),
        ("degree min / mean / max", "4 / 4 / 4"),
        ("diameter", "4"),
        ("spectral gap", "0.4000"),
        ("rounds to 1e-3", "14"),
        ("links", "two-way"),
        ("rounds", "fixed"),
    ]


def test_parts_that_never_meet() -> None:
    report = describe(Topology.from_edges(4, [(0, 1), (2, 3)]))
    assert report.diameter is None and report.gap == 0 and math.isinf(report.rounds)
    assert ("rounds to 1e-3", "never") in report.rows()
    assert ("diameter", "not connected") in report.rows()


def test_schedules() -> None:
    one_peer = describe(build("one-peer-exponential", 16))
    assert (one_peer.edges, one_peer.degree_max, one_peer.gap, one_peer.rounds) == (16, 1, 1, 4)
    assert not one_peer.symmetric and ("rounds", "repeats after 4") in one_peer.rows()
    drawn = describe(build("epidemic-oracle", 20))
    assert (drawn.edges, drawn.degree_min, drawn.period) == (40, 4, None)
    assert 0.4 < drawn.gap < 0.7 and ("rounds", "never repeats") in drawn.rows()


@settings(max_examples=50)
@given(st.integers(1, 12), st.data())
def test_diameter_is_that_of_networkx(n: int, data: st.DataObject) -> None:
    edges = data.draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    for directed, kind in ((False, nx.Graph), (True, nx.DiGraph)):
        graph = kind(edges)
        graph.add_nodes_from(range(n))
        connected = nx.is_strongly_connected(graph) if directed else nx.is_connected(graph)
        topology = Topology.from_edges(n, edges, directed=directed)
        assert topology.is_connected == connected
        assert diameter(topology) == (nx.diameter(graph) if connected else None)


def test_large_dense_graphs_are_measured_too() -> None:
    assert diameter(build("full", 600).union) == 1
