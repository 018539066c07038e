"""Two-level federated averaging: edge servers average their own clients, a root averages the edges.

L. Liu, J. Zhang, S. H. Song, K. B. Letaief: "Client-Edge-Cloud Hierarchical Federated Learning", ICC 2020,
https://arxiv.org/abs/1905.06641. `edge_rounds` is their kappa_2.

The root is FedAvg's server, with edges for clients; the clients are FedAvg's. Only the edge is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from p2pfl.courses.course import Course, Place
from p2pfl.courses.fedavg import FedAvgSettings, Server, Trainer
from p2pfl.courses.finetune import tuned
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Evaluate, Finish, Finished, Score, Train, Update
from p2pfl.courses.rounds import Clients
from p2pfl.courses.rules import averaging
from p2pfl.errors import ConfigError, CourseError, require
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology

__all__ = ["HIERARCHICAL", "Edge", "HierarchicalSettings"]


@dataclass(frozen=True, slots=True)
class HierarchicalSettings(FedAvgSettings):
    """The table [course] of a course file.

    `fraction`, `quorum`, `weights` and so on hold at the root and at every edge.
    `deadline_seconds` is for one round of an edge with its clients; who asks edges allows for all of their rounds.
    Learning rate schedules count the rounds that clients see, `edge_rounds` in each of the root.
    """

    name: str = "hierarchical"
    edge_rounds: int = 1
    """Rounds that an edge does with its clients in each round of the root."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        if self.edge_rounds < 1:
            raise ConfigError(f"course.edge_rounds is {self.edge_rounds}; it must be at least 1")
        require(self.unseen == 0, "course.unseen is set, and hierarchical has all clients train; leave it out")
        plain = f"course.privacy is {self.privacy!r}, and edges see each update; set it to 'plain', or take fedavg"
        require(self.privacy == "plain", plain)


class Edge:
    """To its server a client, to its own clients a server."""

    def __init__(self, learner: Learner, settings: HierarchicalSettings, clients: Iterable[int], server: int) -> None:
        """`clients`: the seats that are asked to train; `server`: the seat that it obeys, and no other."""
        self.params: Tensor = learner.model.initial
        self._learner = learner
        self._edge_rounds = settings.edge_rounds
        self._clients = Clients(clients, settings.rules, learner)
        self._server = server
        self._rounds = 0  # once the course is over
        self._node: Node | None = None
        self._ready = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self, node: Node) -> None:
        node.agree(self._learner.schema)
        await self._clients.assemble(node, len(self._clients.seats))
        self._node = node
        self._ready.set()
        with node.waiting("the end of the course"):
            await self._over.wait()
        await self._clients.finish(node, Finish(self._rounds, self._learner.tensors(self.params)))

    async def _obey(self, peer: Peer) -> Node:
        """Our node, once its clients are there. Messages may come before `run` has begun."""
        require_seat(peer, self._server)
        await self._ready.wait()
        assert self._node is not None, "it is ready"
        return self._node

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        node = await self._obey(peer)
        params: Tensor = self._learner.vector(ask.params)
        for edge_round in range(self._edge_rounds):
            round = ask.round * self._edge_rounds + edge_round
            cohort = await self._clients.cohort(node, round, self._learner.seat)
            step = Train(round, self._learner.tensors(params))
            collected = await self._clients.train(node, cohort, step)
            if collected.mean is None:
                raise CourseError("none of the clients of this edge gave an update")
            params = collected.mean
        return Update(ask.round, self._learner.tensors(params), collected.num_examples, collected.loss)

    @Evaluate.handler
    async def evaluate(self, ask: Evaluate, peer: Peer) -> Score:
        scores = await self._clients.evaluate(await self._obey(peer), ask)
        return scores.merged(each=ask.each)

    @Finish.handler
    async def finish(self, ask: Finish, peer: Peer) -> Finished:
        await self._obey(peer)
        self.params = self._learner.vector(ask.params)
        self._rounds = ask.rounds
        self._over.set()
        return Finished()


def _play(place: Place) -> tuple[object, ...]:
    tree: Topology = place.topology.union
    children, parent = tree.children(place.seat), tree.parent(place.seat)
    if parent is not None and not children:
        rule = tuned(averaging(place.learner), place.settings.finetuning(place.learner.train))
        return (Trainer(place.learner, parent, place.journal, rule),)
    rounds = _rounds_below(tree, place.seat, place.settings.edge_rounds)
    settings = replace(place.settings, deadline_seconds=place.settings.deadline_seconds * rounds)
    if parent is None:
        return (Server(place.learner, settings, children, place.stop, place.journal),)
    return (Edge(place.learner, settings, children, parent),)


def _rounds_below(tree: Topology, seat: int, edge_rounds: int) -> int:
    """How many deadlines of a lowest edge this seat gives its clients: one, and all that edges below may need."""
    edges = [child for child in tree.children(seat) if tree.children(child)]
    return 1 + edge_rounds * max((_rounds_below(tree, edge, edge_rounds) for edge in edges), default=0)


def _needs(topology: Topology) -> str | None:
    if not topology.is_tree:
        return "the seats must form a tree with seat 0 as its root, as in the family hierarchy"
    return None


def _leaves(topology: Topology) -> tuple[int, ...]:
    return tuple(seat for seat in range(1, topology.n) if not topology.children(seat))


HIERARCHICAL = Course(
    "hierarchical", HierarchicalSettings, (Server, Edge, Trainer), _play, _leaves, "hierarchy", _needs
)
