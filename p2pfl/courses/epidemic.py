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

from torch import Tensor

from p2pfl.courses.dpsgd import Model
from p2pfl.courses.gossip import GossipSettings, Lead
from p2pfl.courses.learner import Learner
from p2pfl.courses.paced import Paced, paced
from p2pfl.errors import require
from p2pfl.journal.journal import Journal
from p2pfl.learn.params import is_finite
from p2pfl.node.events import RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

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


class Spreader(Paced):
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

    async def _play(self, node: Node, round: int) -> None:
        node.emit(RoundStarted(round + 1, 1))
        fitted = await self._training.fit(node, self._learner, self.params, round)
        trained = self.params if fitted is None else fitted.params
        heard = await self._exchange(node, round, trained)
        self.params = self._mean(node, round, trained, heard)
        await self._close(node, round, fitted, trained, heard.values())

    async def _exchange(self, node: Node, round: int, trained: Tensor) -> dict[int, Tensor]:
        """Give our model to those whom we pick; what has come from others, by seat."""
        picked = self._picked(node, self._neighbors, self._settings.fanout, self._draw("recipients", round))
        with node.waiting(f"models of round {round + 1}"), suppress(TimeoutError):
            async with asyncio.timeout(self._settings.wait_seconds):
                await node.tell_all(picked, Model(round, self._learner.tensors(trained)))
                while not 0 < self._settings.enough <= len(self._mailbox[round]):
                    await node.change()
        self._round = round + 1
        return self._mailbox.pop(round, {})

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

    def _follow(self, lead: Lead) -> None:
        super()._follow(lead)
        for old in [round for round in self._mailbox if round < self._round]:
            del self._mailbox[old]

    @Model.handler
    def model(self, message: Model, peer: Peer) -> None:
        seat = self._sender(message, peer)
        vector = self._learner.vector(message.params, finite=False)  # _mean looks
        if self._round <= message.round < self._round + _ROUNDS_AHEAD:
            self._mailbox[message.round][seat] = vector
            if len(self._mailbox[message.round]) == self._settings.enough:
                peer.node.stir()


EPIDEMIC = paced("epidemic", EpidemicSettings, Spreader)
