"""Families whose graph changes every round: few messages per round, and yet quick agreement over several."""

from __future__ import annotations

from itertools import combinations, product
from random import Random
from typing import TYPE_CHECKING, Any

from p2pfl.errors import ConfigError
from p2pfl.topology.fixed import full
from p2pfl.topology.graph import Edge, Topology
from p2pfl.topology.schedule import Cycle, Drawn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "activation",
    "base_graph",
    "epidemic_local",
    "epidemic_oracle",
    "matcha",
    "matchings",
    "moshpit",
    "one_peer_exponential",
    "random_matching",
]


def one_peer_exponential(n: int) -> Cycle:
    """Directed: in round t seat i sends to i + 2^(t mod ⌈log2 n⌉) and to nobody else.

    Exact after log2 n rounds if n is a power of two, else only nearly. B. Ying et al., NeurIPS 2021,
    https://arxiv.org/abs/2110.13363.

    >>> one_peer_exponential(8).at(2).neighbors(1)
    (5,)
    """
    name = "one-peer-exponential"
    hops = [1 << k for k in range((n - 1).bit_length())] or [1]
    rounds = (((i, (i + hop) % n) for i in range(n)) for hop in hops)
    return Cycle(tuple(Topology.from_edges(n, edges, directed=True, family=name) for edges in rounds), name)


def moshpit(n: int, dims: int = 2, side: int | None = None) -> Cycle:
    """Seats on a grid of `dims` dimensions; in round t those that share all coordinates but number t mod dims average.

    Exact after `dims` rounds if side ** dims == n. `side` is the smallest that holds all seats unless given.
    M. Ryabinin, E. Gorbunov, V. Plokhotnyuk, G. Pekhimenko: "Moshpit SGD: Communication-Efficient Decentralized
    Training on Heterogeneous Unreliable Devices", NeurIPS 2021, https://arxiv.org/abs/2103.03239.

    Seats keep their places, where the paper's peers take the number that they had in their last group for their next
    coordinate; with a tenth of 8 x 8 seats absent in each round, the variance shrinks as fast.
    """
    if dims < 1:
        raise ConfigError(f"dims = {dims} makes no grid: choose at least 1")
    side = next(s for s in range(1, n + 1) if s**dims >= n) if side is None else side
    if side**dims < n:
        raise ConfigError(
            f"side = {side} in dims = {dims} holds only {side**dims} of n = {n} seats: raise side or dims"
        )
    rounds = []
    for axis in range(dims):
        groups: dict[tuple[int, ...], list[int]] = {}
        for seat, place in zip(range(n), product(range(side), repeat=dims), strict=False):
            groups.setdefault(place[:axis] + place[axis + 1 :], []).append(seat)
        pairs = (pair for group in groups.values() for pair in combinations(group, 2))
        rounds.append(Topology.from_edges(n, pairs, family="moshpit"))
    return Cycle(tuple(rounds), "moshpit")


Row = dict[int, float]
_Round = dict[int, Row]  # seat -> neighbor -> weight


def base_graph(n: int, k: int = 1) -> Cycle:
    """Exact agreement after finitely many rounds for any n, with at most k neighbors per seat in each round.

    Y. Takezawa, R. Sato, H. Bao, K. Niwa, M. Yamada: "Beyond Exponential Graph", NeurIPS 2023,
    https://arxiv.org/abs/2305.11420 (the Simple Base-(k+1) Graph). The seats are cut into blocks of powers of k + 1;
    cliques agree inside each group of blocks, weighted links bring every block's mean to the mean of all, and cliques
    agree inside the blocks again, the large ones while the small ones still wait for their turn.
    """
    if k < 1:
        raise ConfigError(f"k = {k} leaves the seats without neighbors: choose at least 1")
    if _factors(n, k + 1) is not None:
        return _prescribed(n, _hyper_hypercube(list(range(n)), k + 1))
    groups = _blocks(n, k + 1)  # each: a list of blocks of equal size
    inside = [_hyper_hypercube([seat for block in blocks for seat in block], k + 1) for blocks in groups]
    rounds: list[_Round] = [{} for _ in range(max(map(len, inside)))]
    for cliques in inside:
        for number, clique in enumerate(cliques):
            rounds[number] |= clique
    start = len(rounds)
    for number, blocks in enumerate(groups[:-1]):
        rest = [seat for later in groups[number + 1 :] for block in later for seat in block]
        again = [_hyper_hypercube(block, k + 1) for block in blocks]
        while len(rounds) < start + number + 1 + max(map(len, again)):
            rounds.append({})
        rounds[start + number] |= _bridge(blocks, rest)
        for cliques in again:
            for later, clique in enumerate(cliques, start + number + 1):
                rounds[later] |= clique
    return _prescribed(n, rounds)


def _factors(n: int, base: int) -> list[int] | None:
    """Write n as a product of factors from 2 to `base`, as few as possible; None if a prime factor is larger."""
    factors: list[int] = []
    while n > 1:
        factor = next((f for f in range(base, 1, -1) if n % f == 0), None)
        if factor is None:
            return None
        factors.append(factor)
        n //= factor
    return factors


def _blocks(n: int, base: int) -> list[list[list[int]]]:
    """Cut 0..n-1 after the digits of n in `base`: for every digit d at power p, d blocks of base ** p seats."""
    power = 1
    while power * base <= n:
        power *= base
    groups, first = [], 0
    while power:
        digit = (n - first) // power
        if digit:
            groups.append([list(range(first + b * power, first + (b + 1) * power)) for b in range(digit)])
        first += digit * power
        power //= base
    return groups


def _hyper_hypercube(seats: list[int], base: int) -> list[_Round]:
    """Rounds of cliques along the axes of a grid, after which all of `seats` agree."""
    rounds: list[_Round] = []
    stride = 1
    for factor in _factors(len(seats), base) or ():
        clique: _Round = {}
        for place, seat in enumerate(seats):
            first = place - place // stride % factor * stride
            clique[seat] = {seats[first + step * stride]: 1 / factor for step in range(factor)}
            del clique[seat][seat]
        rounds.append(clique)
        stride *= factor
    return rounds


def _bridge(blocks: list[list[int]], rest: list[int]) -> _Round:
    """Link every seat of the rest to one of each block, so that each block's mean and the rest's become that of all."""
    weight = len(blocks[0]) / (sum(map(len, blocks)) + len(rest))
    links: _Round = {seat: {} for seat in rest}
    for block in blocks:
        for inner, outer in zip(block, rest, strict=False):
            links[outer][inner] = weight
            links[inner] = {outer: weight}
    return links


def _prescribed(n: int, rounds: list[_Round]) -> Cycle:
    topologies = []
    for links in rounds or [{}]:
        edges = ((seat, other) for seat, row in links.items() for other in row)
        topology = Topology.from_edges(n, edges, family="base")
        topologies.append(topology.with_rows(links.get(seat, {}) for seat in range(n)))
    return Cycle(tuple(topologies), "base")


def random_matching(n: int, seed: int = 0) -> Drawn:
    """Every round all seats pair up at random; one stays alone if n is odd."""

    def draw(rng: Random) -> list[Edge]:
        seats = rng.sample(range(n), n)
        return list(zip(seats[::2], seats[1::2], strict=False))

    return Drawn(_everybody(n, "random-matching"), draw, seed)


def epidemic_oracle(n: int, degree: int = 4, seed: int = 0) -> Drawn:
    """Every round a fresh random graph with `degree` neighbors for everybody (EL-Oracle).

    M. de Vos et al.: "Epidemic Learning: Boosting Decentralized Learning with Randomized Communication", NeurIPS 2023,
    https://arxiv.org/abs/2310.01972.
    """
    if not 1 <= degree < n or n * degree % 2:
        raise ConfigError(
            f"degree = {degree} does not fit n = {n}: choose 1 <= degree < n such that n * degree is even"
        )

    def draw(rng: Random) -> list[Edge]:
        import networkx as nx  # noqa: PLC0415 - slow to import, and only this family needs it

        return list(nx.random_regular_graph(degree, n, rng).edges)

    return Drawn(_everybody(n, "epidemic-oracle"), draw, seed)


def epidemic_local(n: int, fanout: int = 4, seed: int = 0) -> Drawn:
    """Directed: every round each seat sends to `fanout` others that it picks by itself (EL-Local, same paper)."""
    if not 1 <= fanout < n:
        raise ConfigError(f"fanout = {fanout} does not fit n = {n}: choose between 1 and n - 1")

    def draw(rng: Random) -> list[Edge]:
        return [(i, (i + 1 + hop) % n) for i in range(n) for hop in rng.sample(range(n - 1), fanout)]

    return Drawn(_everybody(n, "epidemic-local", directed=True), draw, seed)


def _everybody(n: int, family: str, directed: bool = False) -> Topology:
    return Topology(full(n).adjacency, directed, family)


def matchings(topology: Topology) -> tuple[tuple[Edge, ...], ...]:
    """Cut the edges into matchings: sets in which no seat stands twice. Greedy: at most 2 * max degree - 1 of them.

    >>> matchings(Topology.from_edges(3, [(0, 1), (1, 2), (0, 2)]))
    (((0, 1),), ((0, 2),), ((1, 2),))
    """
    found: list[list[Edge]] = []
    taken: list[set[int]] = [set() for _ in range(topology.n)]  # seat -> numbers of the matchings it stands in
    for a, b in topology.edges:
        number = next(c for c in range(len(found) + 1) if c not in taken[a] and c not in taken[b])
        if number == len(found):
            found.append([])
        found[number].append((a, b))
        taken[a].add(number)
        taken[b].add(number)
    return tuple(map(tuple, found))


def activation(topology: Topology, budget: float = 0.5, steps: int = 300) -> tuple[float, ...]:
    """How often each of `matchings(topology)` should be used so that the seats agree soonest (MATCHA).

    Maximises λ2 of the expected Laplacian Σ p_j L_j under 0 <= p <= 1 and Σ p = budget * number of matchings, which is
    concave, by projected gradient steps on a soft minimum of the eigenvalues: unlike a subgradient of λ2 it does not
    depend on which basis the machine picks for equal eigenvalues. The result is rounded to 1e-4 for the same reason.

    J. Wang, A. K. Sahu, Z. Yang, G. Joshi, S. Kar: "MATCHA: Speeding Up Decentralized SGD via Matching Decomposition
    Sampling", 2019, https://arxiv.org/abs/1905.09435.
    """
    if not 0 < budget <= 1:
        raise ConfigError(f"budget = {budget} is no share of the links: choose a number above 0 and up to 1")
    import numpy as np  # noqa: PLC0415 - nodes on fixed graphs do without

    parts = [np.array(part).T for part in matchings(topology)]
    total = budget * len(parts)
    chance = np.full(len(parts), budget)
    best, best_value = chance, -1.0
    for step in range(steps):
        laplacian = np.zeros((topology.n, topology.n))
        for share, (a, b) in zip(chance, parts, strict=True):
            laplacian[a, b] = laplacian[b, a] = -share
        np.fill_diagonal(laplacian, -laplacian.sum(1))
        values, vectors = np.linalg.eigh(laplacian)
        if values[1] > best_value + 1e-9:
            best, best_value = chance, values[1]
        sharpness = (values[1:] - values[1]) * (10 + step) / max(values[1], 1e-3)
        soft = np.exp(-sharpness) / np.exp(-sharpness).sum()
        slope = np.array([((vectors[a, 1:] - vectors[b, 1:]) ** 2).sum(0) @ soft for a, b in parts])
        slope -= slope.mean()  # along the constraint
        chance = _project(chance + 0.2 / (1 + step) ** 0.5 * slope / max(np.linalg.norm(slope), 1e-9), total)
    return tuple(round(float(share), 4) for share in best)


def _project(point: npt.NDArray[np.float64], total: float) -> npt.NDArray[np.float64]:
    """The nearest point with entries in [0, 1] that sum to `total`: shift all by one number, found by bisection."""
    low, high = -1.0 - float(point.max()), 1.0 - float(point.min())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (point + middle).clip(0, 1).sum() < total else (low, middle)
    clipped: npt.NDArray[Any] = (point + high).clip(0, 1)
    return clipped


def matcha(topology: Topology, budget: float = 0.5, seed: int = 0) -> Drawn:
    """Every round each matching of `topology` is used or not, by `activation`: about `budget` of its links (MATCHA)."""
    parts = matchings(topology)
    chances = activation(topology, budget)

    def draw(rng: Random) -> list[Edge]:
        used = [part for part, chance in zip(parts, chances, strict=True) if rng.random() < chance]
        return [edge for part in used for edge in part]

    union = Topology(topology.adjacency, topology.directed, "matcha", topology.names, topology.roles)
    return Drawn(union, draw, seed)
