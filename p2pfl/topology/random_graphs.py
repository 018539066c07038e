"""Random graphs, drawn once by networkx from a seed, and connected or refused.

The same seed gives the same graph in every process with the same networkx; `Topology.fingerprint` shows whether it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError
from p2pfl.topology.graph import Topology

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["barabasi_albert", "erdos_renyi", "regular", "watts_strogatz"]

_TRIES = 100


def _connected(family: str, draw: Callable[[Random], nx.Graph], seed: int, mend: str) -> Topology:
    rng = Random(f"{family}/{seed}")
    for _ in range(_TRIES):
        graph = draw(rng)
        topology = Topology.from_edges(len(graph), graph.edges, family=family)
        if topology.is_connected:
            return topology
    raise ConfigError(f"no connected graph in {_TRIES} draws of family {family!r}: {mend}")


def regular(n: int, degree: int = 4, seed: int = 0) -> Topology:
    """Any graph with `degree` neighbors for everybody, drawn uniformly: an expander with high probability."""
    if not 1 <= degree < n or n * degree % 2:
        raise ConfigError(
            f"degree = {degree} does not fit n = {n}: choose 1 <= degree < n such that n * degree is even"
        )
    import networkx as nx  # noqa: PLC0415 - slow to import, and only this family needs it

    return _connected("regular", lambda rng: nx.random_regular_graph(degree, n, rng), seed, "choose degree >= 3")


def erdos_renyi(n: int, probability: float | None = None, seed: int = 0) -> Topology:
    """Every edge with the same `probability`; 2 ln(n) / n, twice what keeps it connected, unless given."""
    threshold = math.log(n) / n
    probability = min(1.0, 2 * threshold) if probability is None else probability
    if not 0 < probability <= 1:
        raise ConfigError(f"probability = {probability} is none: choose a number above 0 and up to 1")
    import networkx as nx  # noqa: PLC0415 - slow to import, and only this family needs it

    mend = f"raise probability = {probability:g} above ln(n) / n = {threshold:.3f}"
    return _connected("erdos-renyi", lambda rng: nx.gnp_random_graph(n, probability, rng), seed, mend)


def watts_strogatz(n: int, degree: int = 4, rewire: float = 0.3, seed: int = 0) -> Topology:
    """A ring of `degree` nearest neighbors, each edge moved at random with probability `rewire`: a small world.

    D. J. Watts, S. H. Strogatz: "Collective dynamics of 'small-world' networks", Nature 393 (1998).
    """
    if degree % 2 or not 2 <= degree < n:
        raise ConfigError(f"degree = {degree} does not fit n = {n}: choose an even degree between 2 and n - 1")
    if not 0 <= rewire <= 1:
        raise ConfigError(f"rewire = {rewire} is no probability: choose a number between 0 and 1")
    import networkx as nx  # noqa: PLC0415 - slow to import, and only this family needs it

    mend = "raise degree or lower rewire"
    return _connected("watts-strogatz", lambda rng: nx.watts_strogatz_graph(n, degree, rewire, rng), seed, mend)


def barabasi_albert(n: int, attach: int = 2, seed: int = 0) -> Topology:
    """Seats join one by one and link to `attach` others, the well-linked preferred: a few hubs, many leaves.

    A.-L. Barabási, R. Albert: "Emergence of Scaling in Random Networks", Science 286 (1999).
    """
    if not 1 <= attach < n:
        raise ConfigError(f"attach = {attach} does not fit n = {n}: choose between 1 and n - 1")
    import networkx as nx  # noqa: PLC0415 - slow to import, and only this family needs it

    return _connected("barabasi-albert", lambda rng: nx.barabasi_albert_graph(n, attach, rng), seed, "raise attach")
