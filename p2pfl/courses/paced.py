"""Gossip in which nodes wait for nobody in particular: rounds at one's own pace, and models that are there or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from random import Random
from typing import NamedTuple

from torch import Tensor

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import Model, connected
from p2pfl.courses.gossip import Gossiping, GossipSettings, Lead, begin, catch_up, consensus_distance, part
from p2pfl.courses.learner import seed_of
from p2pfl.errors import RemoteProtocolError
from p2pfl.learn.params import is_finite
from p2pfl.learn.train import FitResult
from p2pfl.node.events import RoundEnded, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology

__all__ = ["Letter", "Mailbox", "Paced", "mutual", "paced"]


class Letter(NamedTuple):
    """A neighbour's model, the round of our own, from 0, in which it came, and the steps of training that made it."""

    params: Tensor
    round: int
    age: int = 0


class Mailbox(dict[int, Letter]):
    """The last model of each neighbour, by seat. So there are never more than there are neighbours."""

    def state(self) -> RoleState:
        """What it has to remember between rounds."""
        entries = [(f"mail {seat} {name}", value) for seat in self for name, value in self[seat]._asdict().items()]
        return dict(entries)

    @classmethod
    def restored(cls, state: RoleState) -> Mailbox:
        """From the state of the whole role."""
        seats = [int(name.split()[1]) for name in state if name.startswith("mail ") and name.endswith(" params")]
        box = cls()
        for seat in sorted(seats):
            params, round, age = (state[f"mail {seat} {name}"] for name in Letter._fields)
            box[seat] = Letter(as_tensor(params), int(round), int(age))
        return box


class Paced(Gossiping, ABC):
    """One node of the graph, which plays round after round.

    Where all that it hears are rounds ahead, it goes on where they are.
    """

    async def run(self, node: Node) -> None:
        node.agree(self._learner.schema)
        patience = self._settings.rejoin_seconds
        lead = await begin(node, self._learner, self._neighbors, self._round, patience, alone=True)
        while True:
            if lead is not None:
                self._follow(lead)
            if self._round >= self._stop:
                break
            await self._play(node, self._round)
            lead = await self._behind(node)
        self._through.set()
        await self._part(node)
        self._end(node)

    def state(self) -> RoleState:
        return {"params": self.params, "round": self._round}

    def resume(self, state: RoleState) -> None:
        self.params, self._round = as_tensor(state["params"]), int(state["round"])

    async def _part(self, node: Node) -> None:
        """We are through, and the others do not need us, but for those who were cut off a short while ago."""
        await part(node, self._neighbors, self._settings.rejoin_seconds, all_of_them=False)

    @abstractmethod
    async def _play(self, node: Node, round: int) -> None:
        """Play this round, from 0, and `_close` it."""

    def _follow(self, lead: Lead) -> None:
        """Go on where a neighbour is."""
        self._round, self.params = lead.round, lead.params

    async def _close(
        self,
        node: Node,
        round: int,
        fitted: FitResult | None,
        sent: Tensor,
        heard: Collection[Tensor],
        more: Mapping[str, float] | None = None,
    ) -> None:
        """A round is over: measure and keep what it has made, of the models `heard` and of what we have `sent`."""
        self._round = round + 1
        due = self._settings.is_due(self._learner.seat, round)
        distance = consensus_distance(sent, heard) if due else None
        metrics = await self._settings.measure(self._learner, self.params, round, fitted, distance)
        metrics |= more or {}
        await self._durable.commit(node, self._round, self.state(), metrics)
        node.emit(RoundEnded(round + 1, len(heard) + 1, metrics))

    async def _behind(self, node: Node) -> Lead | None:
        """Where a neighbour is, if all that we can hear are rounds ahead."""
        if self._round >= self._stop or not self._pace.anybody_beyond(self._round):
            return None  # as nearly always: then nobody's link is looked at
        audible = [seat for seat in self._neighbors if node.hears(seat)]
        if not self._pace.is_beyond(audible, self._round):
            return None
        return await catch_up(node, self._learner, audible, self._round)

    def _draw(self, what: str, round: int) -> Random:
        """What this node's choices in a round are drawn from; the same after a restart."""
        return Random(seed_of(self._learner.seed, what, self._learner.seat, round))

    def _picked(self, node: Node, seats: Collection[int], many: int, draw: Random) -> list[Peer]:
        """So many of those who sit there and are linked; all of these, if they are fewer."""
        linked = [peer for seat in seats if (peer := node.at(seat)) is not None]
        return draw.sample(linked, min(many, len(linked)))

    def _sender(self, message: Model, peer: Peer) -> int:
        """The seat of who sends this model. Raises RemoteProtocolError if it is not to."""
        if not 0 <= message.round < self._settings.rounds:
            raise RemoteProtocolError(f"a model of round {message.round + 1} came, of {self._settings.rounds}")
        seat = require_seat(peer, *self._neighbors)
        self._pace.note(seat, message.round)
        return seat

    def _sound(self, message: Model, peer: Peer) -> Tensor | None:
        """The model that came; None if it has NaN or infinite numbers, which is told."""
        vector = self._learner.vector(message.params, finite=False)
        if is_finite(vector):
            return vector
        reason = "its model has NaN or infinite numbers"
        peer.node.emit(UpdateMissing(self._round + 1, peer.name, reason, "unusable"))
        return None


def mutual(topology: Topology) -> str | None:
    """Why not everybody can pick whom it likes on this graph, and be picked; or None."""
    return connected(topology) if topology.is_symmetric else "links must go both ways, because anybody may pick anybody"


def paced(name: str, settings: type[GossipSettings], role: type[Paced], family: str = "full") -> Course:
    """The course in which every seat plays `role`."""

    def play(place: Place) -> tuple[object, ...]:
        neighbors = place.topology.union.neighbors(place.seat)
        return (role(place.learner, place.settings, neighbors, place.stop, place.journal),)

    return Course(name, settings, (role,), play, lambda topology: range(topology.n), family, mutual)
