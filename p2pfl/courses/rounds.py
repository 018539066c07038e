"""One round of a coordinator, in two pieces: who is asked, and what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from torch import Tensor

from p2pfl.aggregators.mean import WeightedMean
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Evaluate, Score, Train, Update
from p2pfl.errors import P2pflError, RemoteProtocolError
from p2pfl.node.events import UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["Collected", "RoundRules", "collect", "score"]


@dataclass(frozen=True, slots=True)
class RoundRules:
    """How many are asked, and how many answers are waited for."""

    fraction: float = 1.0  # share of the clients that makes up a cohort
    over_selection: float = 0.0  # so many more are asked, as a share of the cohort
    quorum: float = 1.0  # share of the cohort whose updates are enough
    deadline_seconds: float = 0.0  # 0: none
    by_examples: bool = True  # weigh updates by the number of examples, else equally

    def cohort(self, peers: Sequence[Peer], clients: int, rng: Random) -> list[Peer]:
        """Who of the linked peers is asked."""
        wanted = math.ceil(self._size(clients) * (1 + self.over_selection))
        return sorted(rng.sample(list(peers), min(wanted, len(peers))), key=lambda peer: (peer.seat or 0, peer.id))

    def enough(self, clients: int) -> int:
        """How many updates end a round."""
        return max(1, math.ceil(self.quorum * self._size(clients)))

    def _size(self, clients: int) -> int:
        return max(1, round(self.fraction * clients))


@dataclass(frozen=True, slots=True)
class Collected:
    """What a round brought. `params` is None if there was no update at all."""

    params: Tensor | None
    count: int
    num_examples: int
    loss: float | None


async def collect(node: Node, learner: Learner, cohort: Sequence[Peer], ask: Train, rules: RoundRules, enough: int) -> Collected:
    """Ask the cohort to train, and average what comes until there is enough of it, or no time left."""
    mean = WeightedMean(peer.id for peer in cohort)
    num_examples, losses = 0, WeightedScalar()
    async with node.ask_all(cohort, ask) as replies:
        with suppress(TimeoutError):
            async with asyncio.timeout(rules.deadline_seconds or None):
                async for peer, update in replies:
                    try:
                        vector = learner.vector(update.params)
                        mean.add(peer.id, vector, update.num_examples if rules.by_examples else 1)
                    except (RemoteProtocolError, ValueError) as error:
                        node.emit(UpdateMissing(ask.round + 1, peer.name, str(error)))
                        continue
                    num_examples += update.num_examples
                    losses.add(update.loss, update.num_examples)
                    if mean.count == enough:
                        break
        if mean.count < enough:
            _explain(node, ask, replies.failed, replies.waiting)
    return Collected(mean.value(), mean.count, num_examples, losses.value)


def _explain(node: Node, ask: Train, failed: dict[Peer, P2pflError], waiting: set[Peer]) -> None:
    for peer, error in failed.items():
        node.emit(UpdateMissing(ask.round + 1, peer.name, str(error)))
    for peer in sorted(waiting, key=lambda peer: peer.id):
        node.emit(UpdateMissing(ask.round + 1, peer.name, "no update before the deadline"))


async def score(node: Node, peers: Sequence[Peer], ask: Evaluate) -> Score:
    """Let the peers evaluate, each on its own examples; the mean weighted by their numbers."""
    loss, accuracy, total = WeightedScalar(), WeightedScalar(), 0
    async with node.ask_all(peers, ask) as replies:
        found = {peer: found async for peer, found in replies}
    for peer in peers:
        if peer in found:
            loss.add(found[peer].loss, found[peer].num_examples)
            accuracy.add(found[peer].accuracy, found[peer].num_examples)
            total += found[peer].num_examples
    return Score(loss.value, accuracy.value, total)


class WeightedScalar:
    """A mean of numbers of which some may be absent."""

    __slots__ = ("_sum", "_weight")

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float | None, weight: float) -> None:
        if value is not None:
            self._sum += value * weight
            self._weight += weight

    @property
    def value(self) -> float | None:
        return self._sum / self._weight if self._weight > 0 else None
