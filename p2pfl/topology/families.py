"""All families by name: `build("torus", 16)`. What topology files and courses write is looked up here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from p2pfl.errors import ConfigError
from p2pfl.topology import fixed, random_graphs, varying
from p2pfl.topology.checks import refuse_unknown, typed, unknown
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Cycle, Drawn

__all__ = ["FAMILIES", "build", "parameters"]

AnySchedule = Topology | Cycle | Drawn


def _matcha(n: int, base: str | dict[str, Any] = "torus", budget: float = 0.5, seed: int = 0) -> Drawn:
    """MATCHA on a graph of another family: `base = "ring"`, or `base = {family = "regular", degree = 4}`."""
    more = {"family": base} if isinstance(base, str) else dict(base)
    family = typed("family 'matcha'", "base.family", more.pop("family", None), str)
    graph = build(family, n, **more)
    if not isinstance(graph, Topology) or not graph.is_symmetric:
        raise ConfigError(
            f"base = {family!r} has no fixed two-way links to cut into matchings: choose another, as 'torus'"
        )
    return varying.matcha(graph, budget, seed)


FAMILIES: dict[str, Callable[..., AnySchedule]] = {
    "adjacency": fixed.adjacency,
    "barabasi-albert": random_graphs.barabasi_albert,
    "base": varying.base_graph,
    "bipartite": fixed.bipartite,
    "chain": fixed.chain,
    "clustered": fixed.clustered,
    "double-binary-tree": fixed.double_binary_tree,
    "edges": fixed.edge_list,
    "epidemic-local": varying.epidemic_local,
    "epidemic-oracle": varying.epidemic_oracle,
    "erdos-renyi": random_graphs.erdos_renyi,
    "exponential": fixed.exponential,
    "full": fixed.full,
    "grid": fixed.grid,
    "hierarchy": fixed.hierarchy,
    "hypercube": fixed.hypercube,
    "latency": fixed.latency,
    "matcha": _matcha,
    "moshpit": varying.moshpit,
    "one-peer-exponential": varying.one_peer_exponential,
    "random-matching": varying.random_matching,
    "regular": random_graphs.regular,
    "ring": fixed.ring,
    "star": fixed.star,
    "torus": fixed.torus,
    "tree": fixed.tree,
    "watts-strogatz": random_graphs.watts_strogatz,
}


def parameters(family: str) -> Mapping[str, inspect.Parameter]:
    """What a family takes beside n, by name. Raises ConfigError for an unknown family.

    >>> list(parameters("regular"))
    ['degree', 'seed']
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    found = dict(inspect.signature(FAMILIES[family]).parameters)
    del found["n"]
    return found


def build(family: str, n: int, **given: object) -> AnySchedule:
    """Make a topology, or a schedule that changes every round, of `n` seats.

    Raises ConfigError for an unknown family or parameter, with the nearest name, and for values that do not fit.

    >>> build("torus", 16)
    <Topology torus: 16 seats, 32 edges, degree 4>
    >>> build("one-peer-exponential", 16)
    <Cycle one-peer-exponential: 16 seats, period 4>
    """
    known = parameters(family)
    where = f"family {family!r}"
    refuse_unknown(f"{where}: parameter", given, known)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise ConfigError(f"{where} needs {name}: give it beside n")
    kinds = get_type_hints(FAMILIES[family])
    values = {name: typed(where, name, value, kinds[name]) for name, value in given.items()}
    if typed(where, "n", n, int) < 1:
        raise ConfigError(f"{where}: n = {n} leaves no seat: choose at least 1")
    return FAMILIES[family](n, **values)
