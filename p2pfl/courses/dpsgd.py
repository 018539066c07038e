"""Decentralized SGD: every node trains, gives its model to its neighbours, and mixes what it gets.

X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu: "Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent", NeurIPS 2017,
https://arxiv.org/abs/1705.09056.

Adapt-then-combine with local epochs, as is usual in decentralized learning: x_i <- sum_j w_ij y_j, where y_j is what
local training made of x_j. `order = "combine"` is the paper's combine-then-adapt: x_i <- sum_j w_ij x_j + (y_i - x_i).
What does not arrive leaves its weight with the receiver, so that every row of the mixing matrix still sums to one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.gossip import GossipSettings
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import require_seat
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.params import is_finite
from p2pfl.learn.train import FitResult
from p2pfl.node.events import CourseEnded, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Schedule
from p2pfl.topology.weights import own_weight, received_weights, topology_weights
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors

__all__ = ["DPSGD", "DpsgdSettings", "Mixer", "Model"]

_ROUNDS_AHEAD = 64  # how far a neighbour may be ahead before its models are refused instead of kept


@dataclass(frozen=True, slots=True)
class DpsgdSettings(GossipSettings):
    """The table [course] of a course file."""

    name: str = "dpsgd"
    order: str = "adapt"
    """`adapt`: train, then mix what all have trained; `combine`: mix the models that training began with."""
    deadline_seconds: float = 0.0
    """A round mixes after so long with what has arrived; 0: it waits for every neighbour that is linked."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        if self.order not in ("adapt", "combine"):
            raise ConfigError(f"course.order is {self.order!r}; it must be one of adapt, combine")
        if self.deadline_seconds < 0:
            raise ConfigError(f"course.deadline_seconds is {self.deadline_seconds}; it must not be negative")


class Model(Message):
    """The sender's model in this round. Rounds count from 0."""

    round: int
    params: Tensors


class Mixer:
    """One node of the graph."""

    def __init__(self, learner: Learner, settings: DpsgdSettings, schedule: Schedule, stop: int | None = None) -> None:
        """`stop`: the round, from 0, before which to pause."""
        self.params: Tensor = learner.model.initial
        self._stop = settings.rounds if stop is None else min(stop, settings.rounds)
        self._learner = learner
        self._settings = settings
        self._schedule = schedule
        self._round = 0  # models of this one and of later ones are kept
        self._row: tuple[Topology | None, dict[int, float]] = (None, {})  # of the last graph, which is often the next
        self._awaited: set[int] = set()  # whose models the present round still waits for
        self._node: Node | None = None
        self._mailbox: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)  # round -> seat -> model

    async def run(self, node: Node) -> None:
        self._node = node
        node.agree(self._learner.schema)
        union = self._schedule.union
        await node.meet({*union.neighbors(self._learner.seat), *union.senders(self._learner.seat)})
        for round in range(self._round, self._stop):
            node.emit(RoundStarted(round + 1, 1))
            heard, fitted = await self._step(node, round)
            metrics = await self._settings.measure(self._learner, self.params, round, fitted)
            node.emit(RoundEnded(round + 1, heard + 1, metrics))
        if self._stop == self._settings.rounds:
            node.emit(CourseEnded(self._stop, f"all {self._stop} rounds are done"))

    def state(self) -> RoleState:
        return {"params": self.params, "round": self._round}

    def resume(self, state: RoleState) -> None:
        self.params, self._round = as_tensor(state["params"]), int(state["round"])

    async def _step(self, node: Node, round: int) -> tuple[int, FitResult]:
        seat, graph = self._learner.seat, self._schedule.at(round)
        fitted = await self._learner.fit(self.params, round)
        adapt = self._settings.order == "adapt"
        shared = fitted.params if adapt else self.params
        receivers = [peer for other in graph.neighbors(seat) if (peer := node.at(other))]
        await node.tell_all(receivers, Model(round, self._learner.tensors(shared)))
        heard = await self._gather(node, round, graph.senders(seat))
        mixed = self._mix(node, round, shared, heard)
        self.params = mixed if adapt else mixed.add_(fitted.params).sub_(shared)
        return len(heard), fitted

    def _mix(self, node: Node, round: int, shared: Tensor, heard: dict[int, Tensor]) -> Tensor:
        """sum_j w_ij x_j in the order of the seats; models that are not finite are left out of it, and reported."""
        row = received_weights(self._weights(self._schedule.at(round)), heard)
        mixed = shared * own_weight(row)
        for other in sorted(row):
            mixed.add_(heard[other], alpha=row[other])
        if is_finite(mixed):  # one look at the sum instead of one at each model: NaN and infinity stay visible in it
            return mixed
        sound = {other: model for other, model in heard.items() if is_finite(model)}
        if len(sound) == len(heard):
            return mixed  # it is our own model that has diverged
        for other in sorted(set(heard) - set(sound)):
            node.emit(UpdateMissing(round + 1, f"seat {other}", "its model has NaN or infinite numbers"))
        return self._mix(node, round, shared, sound)

    def _weights(self, graph: Topology) -> dict[int, float]:
        if graph is not self._row[0]:
            self._row = graph, topology_weights(graph, self._learner.seat)
        return self._row[1]

    async def _gather(self, node: Node, round: int, senders: tuple[int, ...]) -> dict[int, Tensor]:
        box = self._mailbox[round]
        with node.waiting(f"the models of round {round + 1}"), suppress(TimeoutError):
            if self._settings.deadline_seconds:
                async with asyncio.timeout(self._settings.deadline_seconds):
                    await self._hear(node, box, senders)
            else:
                await self._hear(node, box, senders)
        del self._mailbox[round]
        self._round = round + 1
        for seat in senders:
            if seat not in box:
                node.emit(UpdateMissing(round + 1, f"seat {seat}", "it is not linked, or late"))
        return box

    async def _hear(self, node: Node, box: dict[int, Tensor], senders: tuple[int, ...]) -> None:
        """Wait until all of them are in the box, or gone."""
        while awaited := {seat for seat in senders if seat not in box and node.hears(seat)}:
            self._awaited = awaited
            await node.change()

    @Model.handler
    def model(self, message: Model, peer: Peer) -> None:
        if message.round < self._round:
            return  # it missed the deadline
        if message.round >= self._round + _ROUNDS_AHEAD:
            raise RemoteProtocolError(f"a model of round {message.round + 1} came in round {self._round + 1}")
        seat = require_seat(peer, *self._schedule.at(message.round).senders(self._learner.seat))
        box = self._mailbox[message.round]
        box[seat] = self._learner.vector(message.params, finite=False)  # _mix looks
        if message.round == self._round and self._node is not None:
            self._awaited.discard(seat)
            if not self._awaited:  # to wake it for every model would cost as much as the mixing
                self._node.stir()


def _play(place: Place) -> tuple[object, ...]:
    return (Mixer(place.learner, place.settings, place.topology, place.stop),)


def _needs(topology: Topology) -> str | None:
    return None if topology.is_connected else "the graph must be connected"


DPSGD = Course("dpsgd", DpsgdSettings, (Mixer,), _play, lambda topology: tuple(range(topology.n)), "ring", _needs)
