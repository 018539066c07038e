"""What a coordinator does with its clients: who is asked, and what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from torch import Tensor

from p2pfl.aggregators.mean import WeightedMean
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.messages import Evaluate, Score, Train
from p2pfl.errors import RemoteProtocolError
from p2pfl.node.events import UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.replies import Replies
from p2pfl.wire.message import Message

__all__ = ["Clients", "Collected", "RoundRules"]

ReplyT = TypeVar("ReplyT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """How many are asked, and how many answers are waited for.

    >>> rules = RoundRules(fraction=0.1, over_selection=0.3, quorum=0.8)
    >>> rules.asked(100), rules.enough(100)
    (13, 8)
    """

    fraction: float = 1.0  # share of the clients that makes up a cohort
    over_selection: float = 0.0  # so many more are asked, as a share of the cohort
    quorum: float = 1.0  # share of the cohort whose updates are enough
    deadline_seconds: float = 0.0  # 0: none
    by_examples: bool = True  # weigh updates by the number of examples, else equally

    def asked(self, clients: int) -> int:
        """How many of so many clients are asked."""
        return min(clients, _ceil(self._size(clients) * (1 + self.over_selection)))

    def enough(self, clients: int) -> int:
        """How many updates end a round."""
        return max(1, _ceil(self._size(clients) * self.quorum))

    def _size(self, clients: int) -> int:
        return max(1, round(self.fraction * clients))


def _ceil(number: float) -> int:
    return math.ceil(number - 1e-9)  # 10 * (1 + 0.1) is a little more than 11


@dataclass(frozen=True, slots=True)
class Collected:
    """What a round brought. `params` is None if there was no update at all."""

    params: Tensor | None
    count: int
    num_examples: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of one coordinator, by their seats."""

    seats: tuple[int, ...]
    rules: RoundRules
    learner: Learner  # the coordinator's own

    async def cohort(self, node: Node, *draw: object) -> list[Peer]:
        """Whom this round asks, by seat: drawn from those who are linked. Waits while nobody is. `draw` seeds it."""
        linked = await node.meet(self.seats, at_least=1)
        rng = Random(seed_of(self.learner.seed, "cohort", *draw))
        chosen = set(rng.sample(linked, min(self.rules.asked(len(self.seats)), len(linked))))
        return [peer for peer in linked if peer in chosen]

    async def train(self, node: Node, cohort: Sequence[Peer], ask: Train) -> Collected:
        """Let the cohort train; the mean of the updates, once there are enough of them or no time is left."""
        enough = min(self.rules.enough(len(self.seats)), len(cohort))
        mean = WeightedMean(cohort)
        losses: dict[Peer, tuple[float | None, int]] = {}
        replies = node.ask_all(cohort, ask)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None), replies:
                async for peer, update in replies:
                    try:
                        vector = self.learner.vector(update.params)
                        mean.add(peer, vector, update.num_examples if self.rules.by_examples else 1)
                    except (RemoteProtocolError, ValueError) as error:
                        node.emit(UpdateMissing(ask.round + 1, peer.name, str(error)))
                        continue
                    losses[peer] = update.loss, update.num_examples
                    if mean.count == enough:
                        break
        _report_missing(node, ask.round, replies, late=mean.count < enough)
        num_examples = sum(examples for _, examples in losses.values())
        return Collected(mean.value(), mean.count, num_examples, _mean(losses.values()))

    async def evaluate(self, node: Node, ask: Evaluate) -> Score:
        """Let all linked clients evaluate, each on its own examples; the mean weighted by their numbers."""
        linked = await node.meet(self.seats, at_least=1)
        scores: list[Score] = []
        replies = node.ask_all(linked, ask)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None), replies:
                async for _, score in replies:
                    scores.append(score)
        _report_missing(node, ask.round, replies, late=True)
        return Score(
            _mean((score.loss, score.num_examples) for score in scores),
            _mean((score.accuracy, score.num_examples) for score in scores),
            sum(score.num_examples for score in scores),
        )


def _report_missing(node: Node, round: int, replies: Replies[ReplyT], *, late: bool) -> None:
    for peer, error in replies.failed.items():
        node.emit(UpdateMissing(round + 1, peer.name, str(error)))
    for peer in sorted(replies.waiting, key=lambda peer: (peer.seat is None, peer.seat, peer.id)) if late else ():
        node.emit(UpdateMissing(round + 1, peer.name, "nothing came before the deadline"))


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    """The weighted mean of those numbers that are there; exact, so that the order does not matter."""
    there = [(value, weight) for value, weight in weighted if value is not None and weight > 0]
    total = sum(weight for _, weight in there)
    return math.fsum(value * weight for value, weight in there) / total if total else None
