"""Two-level federated averaging: edge servers average their own clients, a root averages the edges.

L. Liu, J. Zhang, S. H. Song, K. B. Letaief: "Client-Edge-Cloud Hierarchical Federated Learning", ICC 2020,
https://arxiv.org/abs/1905.06641. `edge_rounds` is their kappa_2.

The root is FedAvg's server, with edges for clients; the clients are FedAvg's. Only the edge is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from torch import Tensor

from p2pfl.courses.course import Course, Place
from p2pfl.courses.fedavg import FedAvgSettings, Server, Trainer
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.messages import Evaluate, Finish, Score, Train, Update
from p2pfl.courses.rounds import RoundRules, collect, score
from p2pfl.errors import ConfigError, CourseError
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.topology.graph import Topology

__all__ = ["HIERARCHICAL", "Edge", "HierarchicalSettings"]


@dataclass(frozen=True, slots=True)
class HierarchicalSettings(FedAvgSettings):
    """The table [course] of a course file. `fraction`, `quorum` and so on hold at the root and at every edge."""

    name: str = "hierarchical"
    edge_rounds: int = 1
    """Rounds that an edge does with its clients in each round of the root."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        if self.edge_rounds < 1:
            raise ConfigError(f"course.edge_rounds is {self.edge_rounds}; it must be at least 1")


class Edge:
    """To the root a client, to its own clients a server."""

    def __init__(self, learner: Learner, settings: HierarchicalSettings, clients: Iterable[int]) -> None:
        self.params: Tensor = learner.model.initial
        self._learner = learner
        self._rules: RoundRules = settings.rules
        self._edge_rounds = settings.edge_rounds
        self._seats = tuple(clients)
        self._node: asyncio.Future[Node] | None = None
        self._over = asyncio.Event()

    async def run(self, node: Node) -> None:
        node.agree(self._learner.schema)
        await node.meet(self._seats)
        self._started().set_result(node)
        with node.waiting("the end of the course"):
            await self._over.wait()

    def _started(self) -> asyncio.Future[Node]:
        if self._node is None:
            self._node = asyncio.get_running_loop().create_future()
        return self._node

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        node = await asyncio.shield(self._started())
        params: Tensor = self._learner.vector(ask.params)
        for edge_round in range(self._edge_rounds):
            linked = await node.meet(self._seats, at_least=1)
            rng = Random(seed_of(self._learner.seed, "cohort", self._learner.seat, ask.round, edge_round))
            cohort = self._rules.cohort(linked, len(self._seats), rng)
            enough = min(self._rules.enough(len(self._seats)), len(cohort))
            step = Train(ask.round * self._edge_rounds + edge_round, self._learner.tensors(params))
            collected = await collect(node, self._learner, cohort, step, self._rules, enough)
            if collected.params is None:
                raise CourseError("none of the clients of this edge gave an update")
            params = collected.params
        return Update(self._learner.tensors(params), collected.num_examples, collected.loss)

    @Evaluate.handler
    async def evaluate(self, ask: Evaluate, peer: Peer) -> Score:
        node = await asyncio.shield(self._started())
        return await score(node, await node.meet(self._seats, at_least=1), ask)

    @Finish.handler
    async def finish(self, message: Finish, peer: Peer) -> None:
        node = await asyncio.shield(self._started())
        self.params = self._learner.vector(message.params)
        await node.tell_all([child for seat in self._seats if (child := node.at(seat))], message)
        self._over.set()


def _play(place: Place) -> tuple[object, ...]:
    tree = place.topology.union
    children = tree.children(place.seat)
    if place.seat == 0:
        return (Server(place.learner, place.settings, children),)
    if children:
        return (Edge(place.learner, place.settings, children),)
    return (Trainer(place.learner),)


def _needs(topology: Topology) -> str | None:
    if not topology.is_tree:
        return "the seats must form a tree with seat 0 as its root, as in the family hierarchy"
    return None


def _leaves(topology: Topology) -> tuple[int, ...]:
    return tuple(seat for seat in range(1, topology.n) if not topology.children(seat))


HIERARCHICAL = Course(
    "hierarchical", HierarchicalSettings, (Server, Edge, Trainer), _play, _leaves, "hierarchy", _needs
)
