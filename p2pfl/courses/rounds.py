"""What a coordinator does with its clients: who is asked, and what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
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
_PAUSE_SECONDS = 1.0
_AT_ONCE = 1000  # clients that are asked together where all are asked


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


class Clients:
    """The clients of one coordinator, by their seats."""

    def __init__(self, seats: Iterable[int], rules: RoundRules, learner: Learner) -> None:
        """`learner`: the coordinator's own."""
        self.seats = tuple(seats)
        self.rules = rules
        self.learner = learner
        self._awake: tuple[int, ...] | None = None

    def awake(self, node: Node) -> tuple[int, ...]:
        """Those that are to be linked all the time. The others sleep until they are called; see Membership.on_call."""
        if self._awake is None:
            self._awake = tuple(seat for seat in self.seats if not node.members.on_call(seat))
        return self._awake

    async def assemble(self, node: Node, at_least: int) -> None:
        """Wait until so many are there: linked, or asleep."""
        awake = self.awake(node)
        await node.meet(awake, at_least=at_least - (len(self.seats) - len(awake)))

    async def cohort(self, node: Node, *draw: object) -> list[Peer]:
        """Whom this round asks, by seat: drawn from those who are there. Waits while nobody is. `draw` seeds it."""
        while True:
            await self.assemble(node, at_least=1)
            order = _shuffled(self.seats, Random(seed_of(self.learner.seed, "cohort", *draw)))
            there = (seat for seat in order if node.at(seat) or node.members.would_wake(seat))
            if peers := await node.call(islice(there, self.rules.asked(len(self.seats)))):
                return peers
            await asyncio.sleep(_PAUSE_SECONDS)  # all who sleep are away, and nobody tells when they come back

    async def dismiss(self, node: Node, peers: Iterable[Peer]) -> None:
        """Let those sleep who sleep until they are called."""
        await node.dismiss(peer for peer in peers if peer.seat is not None and node.members.on_call(peer.seat))

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
        await self.dismiss(node, cohort)
        num_examples = sum(examples for _, examples in losses.values())
        return Collected(mean.value(), mean.count, num_examples, _mean(losses.values()))

    async def evaluate(self, node: Node, ask: Evaluate) -> Score:
        """Let all clients evaluate, each on its own examples; the mean weighted by their numbers."""
        await self.assemble(node, at_least=1)
        there = (seat for seat in self.seats if node.at(seat) or node.members.would_wake(seat))
        scores: list[Score] = []
        while seats := list(islice(there, _AT_ONCE)):
            batch = await node.call(seats)
            scores += await self._scores(node, batch, ask)
            await self.dismiss(node, batch)
        return Score(
            _mean((score.loss, score.num_examples) for score in scores),
            _mean((score.accuracy, score.num_examples) for score in scores),
            sum(score.num_examples for score in scores),
        )

    async def _scores(self, node: Node, clients: Sequence[Peer], ask: Evaluate) -> list[Score]:
        scores: list[Score] = []
        replies = node.ask_all(clients, ask)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None), replies:
                async for _, score in replies:
                    scores.append(score)
        _report_missing(node, ask.round, replies, late=True)
        return scores


def _shuffled(seats: Sequence[int], rng: Random) -> Iterator[int]:
    """All seats in a random order, at a cost that depends on how many are taken: R. A. Fisher and F. Yates, 1938."""
    moved: dict[int, int] = {}  # the places that hold another seat by now
    for left in range(len(seats), 0, -1):
        place = rng.randrange(left)
        yield seats[moved.get(place, place)]
        moved[place] = moved.pop(left - 1, left - 1)


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
