import networkx as nx
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import FAMILIES, Drawn, Topology, build
from p2pfl.topology.families import parameters

NEEDS: dict[str, dict[str, object]] = {
    "adjacency": {"matrix": [[int(abs(i - j) == 1) for j in range(16)] for i in range(16)]},
    "edges": {"edges": [[i, i + 1] for i in range(15)]},
    "latency": {"latency_ms": [[abs(i - j) for j in range(16)] for i in range(16)]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds_connected_under_its_own_name(family: str) -> None:
    schedule = build(family, 16, **NEEDS.get(family, {}))
    assert schedule.n == schedule.at(5).n == 16
    assert schedule.family == schedule.at(0).family == family
    assert schedule.union.is_connected
    assert (FAMILIES[family].__doc__ or "").strip()


def test_parameters_pass() -> None:
    assert build("torus", 12, rows=2).union.neighbors(0) == (1, 5, 6)
    assert parameters("regular").keys() == {"degree", "seed"}


def test_matcha_takes_any_fixed_two_way_base() -> None:
    sparse = build("matcha", 12, base="ring", budget=0.5)
    assert isinstance(sparse, Drawn)
    assert nx.is_isomorphic(nx.Graph(sparse.union.edges), nx.cycle_graph(12))
    wide = build("matcha", 12, base={"family": "regular", "degree": 6})
    assert {len(others) for others in wide.union.adjacency} == {6}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build("rnig", 4), "family 'rnig' is unknown: did you mean 'ring'"),
        (
            lambda: build("regular", 4, degre=3),
            "family 'regular': parameter 'degre' is unknown: did you mean 'degree'",
        ),
        (lambda: build("ring", 4, degree=3), "'degree' is unknown: leave it out"),
        (lambda: build("regular", 4, degree=3.5), "degree = 3.5 has the wrong type: give an integer"),
        (lambda: build("edges", 4), "family 'edges' needs edges"),
        (lambda: build("ring", 0), "n = 0 leaves no seat"),
        (lambda: build("ring", True), "n = True has the wrong type"),
        (lambda: build("matcha", 9, base="exponential"), "base = 'exponential' has no fixed two-way links"),
        (lambda: build("matcha", 9, base="random-matching"), "base = 'random-matching' has no fixed"),
        (lambda: build("matcha", 9, base={}), "base.family = None has the wrong type: give a string"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]  # a lambda of the table above


def test_static_families_are_values() -> None:
    assert isinstance(build("ring", 4), Topology)
    assert build("ring", 4) == build("ring", 4)
