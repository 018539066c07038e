"""Asynchronous pairwise gossip: nodes train at their own pace and average with one random neighbour at a time.

X. Lian, W. Zhang, C. Zhang, J. Liu: "Asynchronous Decentralized Parallel Stochastic Gradient Descent", ICML 2018,
https://arxiv.org/abs/1710.06952.

Deviation, for links with a delay: averaging is in the delta form. The asked node answers with the model that it had and
moves half the way to the asker's; the asker adds half of the difference to the model *that it sent*, so that steps made
meanwhile stay. Each exchange leaves the sum over both nodes as it was, whatever else happens in between. No node waits
for another inside a handler, so there is no deadlock on any graph. Who comes late goes on in the round, and with the
model, of a neighbour.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.gossip import Gossiping, GossipSettings, begin, consensus_distance, part
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.errors import ConfigError, LinkError, RemoteError, RemoteProtocolError
from p2pfl.journal.journal import Journal
from p2pfl.node.events import RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Schedule
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = ["ADPSGD", "AdpsgdSettings", "Pair", "Swap", "Swapped"]


@dataclass(frozen=True, slots=True)
class AdpsgdSettings(GossipSettings):
    """The table [course] of a course file."""

    name: str = "adpsgd"
    patience_seconds: float = 60.0
    """A neighbour that has not answered by then is passed over. If it had already moved, the mean drifts by that."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        if self.patience_seconds <= 0:
            raise ConfigError(f"course.patience_seconds is {self.patience_seconds}; it must be above 0")


class Swapped(Message):
    """The model that the answering node had before it moved."""

    params: Tensors


class Swap(Request[Swapped]):
    """Average with me."""

    params: Tensors


class Pair(Gossiping):
    """One node of the graph."""

    _settings: AdpsgdSettings

    def __init__(
        self,
        learner: Learner,
        settings: AdpsgdSettings,
        schedule: Schedule,
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`stop`: the round, from 0, before which to pause."""
        super().__init__(learner, settings, schedule.union.neighbors(learner.seat), stop, journal)
        self.exchanges = 0

    async def run(self, node: Node) -> None:
        node.agree(self._learner.schema)
        patience = self._settings.rejoin_seconds
        lead = await begin(node, self._learner, self._neighbors, self._round, patience)
        if lead is not None:
            self._round, self.params = lead.round, lead.params
        while self._round < self._stop:
            round, before = self._round, self.params
            node.emit(RoundStarted(round + 1, 1))
            fitted = await self._training.fit(node, self._learner, before, round)
            if fitted is not None:
                self.params = self.params + (fitted.params - before)  # what neighbours brought meanwhile stays
            distance = await self._average(node, round)
            self._round = round + 1
            metrics = await self._settings.measure(self._learner, self.params, round, fitted, distance)
            await self._durable.commit(node, self._round, self.state(), metrics)
            node.emit(RoundEnded(round + 1, 2, metrics))
        await self._part(node)
        self._end(node)

    def state(self) -> RoleState:
        return {"params": self.params, "round": self._round, "exchanges": self.exchanges}

    def resume(self, state: RoleState) -> None:
        self.params, self._round = as_tensor(state["params"]), int(state["round"])
        self.exchanges = int(state["exchanges"])

    async def _average(self, node: Node, round: int) -> float | None:
        """With one neighbour; how far it was from us, where that is to be told."""
        linked = await node.meet(self._neighbors, at_least=0)
        if not linked:
            node.emit(UpdateMissing(round + 1, "every neighbour", "none is linked", "lost"))
            return None
        draw = Random(seed_of(self._learner.seed, "pairs", self._learner.seat, round))
        peer, sent = draw.choice(linked), self.params
        try:
            async with asyncio.timeout(self._settings.patience_seconds):
                answer = await peer.ask(Swap(self._learner.tensors(sent)))
            theirs = self._learner.vector(answer.params)
        except (LinkError, RemoteError, RemoteProtocolError, TimeoutError) as error:
            node.emit(UpdateMissing.because(round + 1, peer.name, error))
            return None
        self.params = self.params + (theirs - sent) / 2
        self.exchanges += 1
        return consensus_distance(sent, [theirs]) if self._settings.is_due(self._learner.seat, round) else None

    async def _part(self, node: Node) -> None:
        self._through.set()
        await part(node, self._neighbors, self._settings.rejoin_seconds)

    @Swap.handler
    async def swap(self, ask: Swap, peer: Peer) -> Swapped:
        require_seat(peer, *self._neighbors)
        theirs, mine = self._learner.vector(ask.params), self.params
        self.params = mine + (theirs - mine) / 2  # in one step, without an await: nothing can come in between
        return Swapped(self._learner.tensors(mine))


def _play(place: Place) -> tuple[object, ...]:
    return (Pair(place.learner, place.settings, place.topology, place.stop, place.journal),)


def _needs(topology: Topology) -> str | None:
    if not topology.is_symmetric:
        return "links must go both ways, because the asked node answers"
    return None if topology.is_connected else "the graph must be connected"


ADPSGD = Course("adpsgd", AdpsgdSettings, (Pair,), _play, lambda topology: tuple(range(topology.n)), "ring", _needs)
