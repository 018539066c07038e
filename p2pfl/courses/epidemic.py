"""Epidemic learning: in each round every node gives its model to a few others that it picks anew, and averages.

M. de Vos, S. Farhadkhani, R. Guerraoui, A.-M. Kermarrec, R. Pires, R. Sharma: "Epidemic Learning: Boosting
Decentralized Learning with Randomized Communication", NeurIPS 2023, https://arxiv.org/abs/2310.01972 (EL-Local).

Each node picks `fanout` of those that it is linked to, by itself: on a full graph, of all. Nobody knows how many models
to expect, about e^-fanout of all nodes get none in a round, and so a round ends after `wait_seconds`, or as soon as
`enough` models have come. x_i <- (x_i + the sum of what came) / (1 + how many came).

EL-Oracle, in which a random regular graph is drawn that all know, is the course dpsgd on the family epidemic-oracle.

Deviations: a round has several local steps, as is usual. A model that comes after its round has ended is left out.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from torch import Tensor

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import Model, connected
from p2pfl.courses.gossip import (
    Gossiping,
    GossipSettings,
    Lead,
    begin,
    catch_up,
    consensus_distance,
    part,
)
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.journal.journal import Journal
from p2pfl.learn.params import is_finite
from p2pfl.node.events import RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology

__all__ = ["EPIDEMIC", "EpidemicSettings", "Spreader"]

_ROUNDS_AHEAD = 8  # how far ahead a model may be that is kept for its round


@dataclass(frozen=True, slots=True)
class EpidemicSettings(GossipSettings):
    """The table [course] of a course file."""

    name: str = "epidemic"
    fanout: int = 4
    """To how many others a node gives its model in a round; fewer, where it is linked to fewer."""
    wait_seconds: float = 5.0
    """After training, a round waits so long for models."""
    enough: int = 0
    """A round ends sooner when so many models have come; 0: it waits its time."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        require(self.fanout >= 1, f"course.fanout is {self.fanout}; it must be at least 1")
        require(self.wait_seconds > 0, f"course.wait_seconds is {self.wait_seconds:g}; it must be above 0")
        require(self.enough >= 0, f"course.enough is {self.enough}; it must not be negative")


class Spreader(Gossiping):
    """One node. Its neighbours are all whom it may give to, and get from."""

    _settings: EpidemicSettings

    def __init__(
        self,
        learner: Learner,
        settings: EpidemicSettings,
        neighbors: tuple[int, ...],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(learner, settings, neighbors, stop, journal)
        self._mailbox: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)  # round -> seat -> model

    async def run(self, node: Node) -> None:
        node.agree(self._learner.schema)
        lead = await begin(node, self._learner, self._neighbors, self._round)
        while True:
            if lead is not None:
                self._follow(lead)
            if self._round >= self._stop:
                break
            await self._play(node, self._round)
            lead = await self._behind(node)
        self._through.set()
        await part(node, self._neighbors, self._settings.rejoin_seconds, all_of_them=False)
        self._end(node)

    def state(self) -> RoleState:
        return {"params": self.params, "round": self._round}

    def resume(self, state: RoleState) -> None:
        self.params, self._round = as_tensor(state["params"]), int(state["round"])

    async def _play(self, node: Node, round: int) -> None:
        node.emit(RoundStarted(round + 1, 1))
        fitted = await self._training.fit(node, self._learner, self.params, round)
        trained = self.params if fitted is None else fitted.params
        heard = await self._exchange(node, round, trained)
        self.params = self._mean(node, round, trained, heard)
        due = self._settings.is_due(self._learner.seat, round)
        distance = consensus_distance(trained, heard.values()) if due else None
        metrics = await self._settings.measure(self._learner, self.params, round, fitted, distance)
        await self._durable.commit(node, self._round, self.state(), metrics)
        node.emit(RoundEnded(round + 1, len(heard) + 1, metrics))

    async def _exchange(self, node: Node, round: int, trained: Tensor) -> dict[int, Tensor]:
        """Give our model to those whom we pick; what has come from others, by seat."""
        with node.waiting(f"models of round {round + 1}"), suppress(TimeoutError):
            async with asyncio.timeout(self._settings.wait_seconds):
                await node.tell_all(self._picked(node, round), Model(round, self._learner.tensors(trained)))
                while not 0 < self._settings.enough <= len(self._mailbox[round]):
                    await node.change()
        self._round = round + 1
        return self._mailbox.pop(round, {})

    def _picked(self, node: Node, round: int) -> list[Peer]:
        linked = [peer for seat in self._neighbors if (peer := node.at(seat)) is not None]
        draw = Random(seed_of(self._learner.seed, "recipients", self._learner.seat, round))
        return draw.sample(linked, min(self._settings.fanout, len(linked)))

    def _mean(self, node: Node, round: int, trained: Tensor, heard: dict[int, Tensor]) -> Tensor:
        """Of ours and of what is finite, in the order of the seats."""
        mean, count = trained.clone(), 1
        for seat, model in sorted(heard.items()):
            if is_finite(model):
                mean, count = mean.add_(model), count + 1
            else:
                reason = "its model has NaN or infinite numbers"
                node.emit(UpdateMissing(round + 1, f"seat {seat}", reason, "unusable"))
        return mean.div_(count)

    async def _behind(self, node: Node) -> Lead | None:
        """Where a neighbour is, if all that we can hear are rounds ahead."""
        audible = [seat for seat in self._neighbors if node.hears(seat)]
        if self._round >= self._stop or not self._pace.is_beyond(audible, self._round):
            return None
        return await catch_up(node, self._learner, audible, self._round)

    def _follow(self, lead: Lead) -> None:
        self._round, self.params = lead.round, lead.params
        for old in [round for round in self._mailbox if round < self._round]:
            del self._mailbox[old]

    @Model.handler
    def model(self, message: Model, peer: Peer) -> None:
        if not 0 <= message.round < self._settings.rounds:
            raise RemoteProtocolError(f"a model of round {message.round + 1} came, of {self._settings.rounds}")
        seat = require_seat(peer, *self._neighbors)
        vector = self._learner.vector(message.params, finite=False)  # _mean looks
        self._pace.note(seat, message.round)
        if self._round <= message.round < self._round + _ROUNDS_AHEAD:
            self._mailbox[message.round][seat] = vector
            if len(self._mailbox[message.round]) == self._settings.enough:
                peer.node.stir()


def _play(place: Place) -> tuple[object, ...]:
    neighbors = place.topology.union.neighbors(place.seat)
    return (Spreader(place.learner, place.settings, neighbors, place.stop, place.journal),)


def _needs(topology: Topology) -> str | None:
    return connected(topology) if topology.is_symmetric else "links must go both ways, because anybody may pick anybody"


EPIDEMIC = Course(
    "epidemic", EpidemicSettings, (Spreader,), _play, lambda topology: tuple(range(topology.n)), "full", _needs
)
