"""Plexus: in each round a few nodes train, one of the next few averages, and nobody coordinates.

M. de Vos, A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma: "Decentralized Learning Made Practical with
Client Sampling", 2023, https://arxiv.org/abs/2302.13837 (first called MoDeST).

The nodes of a sample train, and give their models to the first of the next sample that answers; that one waits for a
fraction of s models, averages them, and pushes the mean to the next sample. What is kept whatever is lost is in
sampling.py.

Deviations: whoever is linked counts as one who answers a ping. There is one aggregator to a round; when it is cut off,
there may be two lines of rounds for a while, of which each node follows the one that is ahead. In the end the last
aggregator gives the model to all.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from p2pfl.courses.sampling import Answer, Sampled, SamplingSettings, Trained, sampling
from p2pfl.courses.view import Seen
from p2pfl.errors import require
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.wire.message import Request
from p2pfl.wire.tensor import Tensors

__all__ = ["PLEXUS", "Accepted", "Participant", "PlexusSettings", "Push"]


@dataclass(frozen=True, slots=True)
class PlexusSettings(SamplingSettings):
    """The table [course] of a course file."""

    name: str = "plexus"
    success_fraction: float = 1.0
    """Share of a sample whose models are enough to go on."""

    def __post_init__(self) -> None:
        SamplingSettings.__post_init__(self)
        share = self.success_fraction
        require(0 < share <= 1, f"course.success_fraction is {share}; it must lie in (0, 1]")


class Accepted(Answer):
    """Whether the asked node takes part."""

    taken: bool


class Push(Request[Accepted]):
    """You are of the sample of this round, from 0: train from this model."""

    round: int
    params: Tensors
    seen: Seen


class Participant(Sampled):
    """One node."""

    _settings: PlexusSettings

    async def _hand_over(self, node: Node, round: int, position: int, model: Trained) -> None:
        for seat in self._order(node, round + 1):
            if await self._give(node, seat, 0, round, model):
                return

    def _is_past(self, round: int) -> bool:
        return round < self._known

    def _givers(self, node: Node, round: int, position: int) -> list[int]:
        return self._order(node, round)[: self._settings.sample]

    def _enough(self, models: int) -> int:
        return math.ceil(self._settings.success_fraction * models)

    async def _go_on(self, node: Node, round: int, params: Tensor, position: int) -> None:
        """Push to the first that take it, of all in order, as many as a sample has."""
        push, taken = Push(round, self._learner.tensors(params), self._view.seen), 0
        order = iter(self._order(node, round))
        while next_ones := [*islice(order, self._settings.sample - taken)]:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._push_to(node, seat, push, params)) for seat in next_ones]
            taken += sum(task.result() for task in asked)

    async def _push_to(self, node: Node, seat: int, push: Push, params: Tensor) -> bool:
        if seat == self._learner.seat:
            self._take_on(node, push.round, params, 0)
            return True
        answer = await self._answer(node, seat, push, self._settings.patience_seconds)
        return answer is not None and answer.taken

    @Push.handler
    async def push(self, ask: Push, peer: Peer) -> Accepted:
        self._check(ask.round, peer)
        params = self._learner.vector(ask.params)
        await self._ready.wait()
        self._learn(ask.seen)
        there = self._learner.seat in self._view.active(0, 0)
        if there:
            self._take_on(peer.node, ask.round, params, 0)
        return Accepted(self._view.seen, there)


PLEXUS = sampling("plexus", PlexusSettings, Participant)
