"""networkx is the oracle for the shapes."""

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.topology import Topology, fixed


def graph(topology: Topology) -> nx.Graph:
    found = nx.Graph(topology.edges)
    found.add_nodes_from(range(topology.n))
    return found


@pytest.mark.parametrize(
    ("topology", "oracle"),
    [
        (fixed.ring(9), nx.cycle_graph(9)),
        (fixed.chain(9), nx.path_graph(9)),
        (fixed.star(9), nx.star_graph(8)),
        (fixed.full(9), nx.complete_graph(9)),
        (fixed.grid(12), nx.grid_2d_graph(3, 4)),
        (fixed.grid(12, rows=2), nx.grid_2d_graph(2, 6)),
        (fixed.torus(12), nx.grid_2d_graph(3, 4, periodic=True)),
        (fixed.torus(25), nx.grid_2d_graph(5, 5, periodic=True)),
        (fixed.hypercube(16), nx.hypercube_graph(4)),
        (fixed.tree(15), nx.balanced_tree(2, 3)),
        (fixed.tree(13, arity=3), nx.balanced_tree(3, 2)),
        (fixed.bipartite(9), nx.complete_bipartite_graph(5, 4)),
        (fixed.bipartite(8, degree=2), nx.cycle_graph(8)),
    ],
)
def test_shapes_are_those_of_networkx(topology: Topology, oracle: nx.Graph) -> None:
    assert nx.is_isomorphic(graph(topology), oracle)


def test_sizes_at_the_edge() -> None:
    for family in (fixed.ring, fixed.chain, fixed.star, fixed.full, fixed.hypercube, fixed.exponential, fixed.tree):
        assert family(1).edges == ()
        assert family(2).is_connected


@given(st.integers(2, 80))
def test_two_trees_share_the_load(n: int) -> None:
    first, second = (nx.Graph(edges) for edges in fixed.binary_trees(n))
    assert nx.is_tree(first) and nx.is_tree(second) and len(first) == len(second) == n
    inner = [{seat for seat, degree in tree.degree if degree > 1} for tree in (first, second)]
    assert len(inner[0] & inner[1]) <= (1 if n % 2 else 0)
    double = fixed.double_binary_tree(n)
    assert max(map(len, double.adjacency)) <= 4
    assert nx.diameter(graph(double)) <= 2 * n.bit_length()


@given(st.integers(2, 60), st.integers(2, 8))
def test_clusters_are_cliques_in_a_circle(n: int, size: int) -> None:
    if size > n:
        with pytest.raises(ConfigError, match="makes no clusters"):
            fixed.clustered(n, size)
        return
    found = fixed.clustered(n, size)
    assert found.is_connected
    assert max(map(len, found.adjacency)) <= size + (n % size) // (n // size) + 2
    if n % size == 0 and n // size > 2 and size > 2:
        assert len(found.edges) == n // size * (size * (size - 1) // 2 + 1)


@given(st.integers(1, 40))
def test_exponential_is_regular_and_connected(n: int) -> None:
    found = fixed.exponential(n)
    assert found.is_connected and found.directed
    assert (
        {len(found.senders(i)) for i in range(n)}
        == {len(found.neighbors(i)) for i in range(n)}
        == {(n - 1).bit_length()}
    )


@given(st.integers(3, 60), st.integers(1, 10))
def test_hierarchy_deals_clients_evenly(n: int, edges: int) -> None:
    if n - 1 - edges < edges:
        with pytest.raises(ConfigError, match=f"edges = {edges} does not fit n = {n}"):
            fixed.hierarchy(n, edges)
        return
    found = fixed.hierarchy(n, edges)
    counts = [len(found.children(relay)) for relay in found.children(0)]
    assert found.is_tree and max(counts) - min(counts) <= 1 and sum(counts) == n - 1 - edges
    assert found.roles.count("edge") == edges


@given(st.integers(1, 10).map(lambda half: 2 * half), st.data())
def test_bipartite_never_links_alike(n: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, n // 2))
    found = fixed.bipartite(n, degree)
    assert {len(others) for others in found.adjacency} == {degree}
    assert all((a - b) % 2 for a, b in found.edges)
    assert found.is_connected == (degree > 1 or n == 2)


def test_latency_keeps_the_near_and_the_connection() -> None:
    far = 80.0
    sites = [
        [0.0 if i == j else 1.0 + abs(i - j) if i // 3 == j // 3 else far + i + j for j in range(6)] for i in range(6)
    ]
    found = fixed.latency(6, sites, nearest=1)
    assert found.is_connected
    assert [edge for edge in found.edges if edge[0] // 3 != edge[1] // 3] == [(0, 3)]  # the shortest bridge, once
    sites[0][1] = 500.0  # one slow direction makes the link slow
    assert (0, 1) not in fixed.latency(6, sites, nearest=1).edges


def test_adjacency_is_directed_unless_symmetric() -> None:
    assert fixed.adjacency(2, [[0, 1], [1, 0]]) == Topology.from_edges(2, [(0, 1)], family="adjacency")
    assert fixed.adjacency(2, [[0, 1], [0, 0]]).directed


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fixed.torus(7), "n = 7 makes no rectangle for family 'torus': choose an n such as 8"),
        (lambda: fixed.grid(12, rows=5), "rows = 5 does not cut n = 12"),
        (lambda: fixed.hypercube(12), "choose n = 8 or n = 16"),
        (lambda: fixed.tree(5, arity=0), "arity = 0"),
        (lambda: fixed.bipartite(7, degree=2), "choose an even n"),
        (lambda: fixed.adjacency(2, [[0, 2], [1, 0]]), "each 0 or 1"),
        (lambda: fixed.latency(2, [[0.0]]), "latency_ms must have 2 rows"),
        (lambda: fixed.latency(1, [[float("nan")]]), "finite numbers of milliseconds"),
        (lambda: fixed.latency(1, [[0.0]], nearest=1), "nearest = 1 does not fit"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]  # a lambda of the table above
