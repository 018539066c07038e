"""What a coordinator does with its clients: who is asked, and what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Protocol

from torch import Tensor

from p2pfl.aggregators.mean import WeightedMean
from p2pfl.courses.attendance import Attendance
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.messages import Evaluate, Finish, Score, Train, Update
from p2pfl.courses.parts import Parts
from p2pfl.errors import ComputeError, RemoteProtocolError
from p2pfl.journal.certificate import Contribution
from p2pfl.node.events import Event, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["ClientExcluded", "ClientReadmitted", "Clients", "Cohort", "Collected", "RoundRules"]

_LATE = "nothing came before the deadline"
_PAUSE_SECONDS = 1.0
_LINGER_SECONDS = 5.0
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
    grace_seconds: float = 0.0  # what those have who are late, once there is a quorum
    rejoin_seconds: float = 0.0  # what those have to come back who are cut off
    exclude_after: int = 0  # failures in succession after which a client is left out for a while; 0: never
    most_examples: int = 100_000_000  # that one update may claim
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
class ClientExcluded(Event):
    """A client that has failed in several rounds is left out of the next."""

    round: int
    peer: str
    rounds: int
    reason: str

    def __str__(self) -> str:
        return f"{self.peer} is left out for {self.rounds} rounds after round {self.round}; at last {self.reason}"


@dataclass(frozen=True, slots=True)
class ClientReadmitted(Event):
    """A client that had been left out has given an update again."""

    round: int
    peer: str

    def __str__(self) -> str:
        return f"{self.peer} is back in round {self.round}"


@dataclass(frozen=True, slots=True)
class Collected:
    """What a round brought. `mean` is that of the updates, and None if there was none at all."""

    mean: Tensor | None
    count: int
    num_examples: int
    loss: float | None
    contributions: tuple[Contribution, ...] = ()  # by seat, where they are certified


@dataclass(frozen=True, slots=True)
class Cohort:
    """Whom a round asks."""

    peers: tuple[Peer, ...]  # by seat
    own: bool = False  # whether the coordinator, too, trains in it

    def __len__(self) -> int:
        return len(self.peers) + self.own


class OwnClient(Protocol):
    """The client that a coordinator is as well."""

    async def own_update(self, node: Node, ask: Train) -> Update:
        """What it trains."""

    async def own_score(self, ask: Evaluate) -> Score:
        """How it finds a model."""


class Clients:
    """The clients of one coordinator, by their seats."""

    def __init__(
        self,
        seats: Iterable[int],
        rules: RoundRules,
        learner: Learner,
        own: OwnClient | None = None,
        *,
        up: Parts | None = None,
        certify: bool = False,
    ) -> None:
        """`learner`: the coordinator's own; `own`: given if it is a client as well; its seat is none of `seats`.

        `up`: the parts of an update, if it is not a model; `certify`: note the hash of each update.
        """
        self.up = learner.parts if up is None else up
        self.seats = tuple(seats)
        self.rules = rules
        self.learner = learner
        self._own = own
        self._everybody = self.seats if own is None else tuple(sorted((*self.seats, learner.seat)))
        self.certify = certify
        self._awake: tuple[int, ...] | None = None
        self._known: dict[int, Peer] = {}  # those that have been linked, except for who sleeps in between
        self._attendance = Attendance(rules.exclude_after)

    @property
    def total(self) -> int:
        """How many clients there are, the coordinator included if it is one."""
        return len(self._everybody)

    def awake(self, node: Node) -> tuple[int, ...]:
        """Those that are to be linked all the time. The others sleep until they are called; see Membership.on_call."""
        if self._awake is None:
            self._awake = tuple(seat for seat in self.seats if not node.members.on_call(seat))
        return self._awake

    async def assemble(self, node: Node, at_least: int) -> None:
        """Wait until so many are there: linked, or asleep."""
        awake = self.awake(node)
        linked = await node.meet(awake, at_least=at_least - (len(self.seats) - len(awake)))
        self._known |= {seat: peer for peer in linked if (seat := peer.seat) is not None}

    async def reassemble(self, node: Node) -> None:
        """In the middle of a course, after a restart: give all who are not away for good the time to come back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.rejoin_seconds):
                await self.assemble(node, len(self.seats))

    async def cohort(self, node: Node, round: int, *salt: object) -> Cohort:
        """Whom this round asks, by seat: drawn from those who are there. Waits while nobody is. `salt` seeds it, too.

        Who was cut off a short while ago is waited for. Who fails all the time is left out, if others are there.
        """
        seed = seed_of(self.learner.seed, "cohort", *salt, round)
        while True:
            await self.assemble(node, at_least=1)
            await self._rejoined(node)
            there = self._there(node, _shuffled(self._everybody, Random(seed)))
            cohort = await self._call(node, (seat for seat in there if self._attendance.admits(seat, round)))
            if not cohort:
                cohort = await self._call(node, self._there(node, _shuffled(self._everybody, Random(seed))))
            if cohort:
                return cohort
            await asyncio.sleep(_PAUSE_SECONDS)  # all who sleep are away, and nobody tells when they come back

    async def _call(self, node: Node, seats: Iterator[int]) -> Cohort:
        drawn = list(islice(seats, self.rules.asked(len(self._everybody))))
        own = self._own is not None and self.learner.seat in drawn
        return Cohort(tuple(await node.call(seat for seat in drawn if not own or seat != self.learner.seat)), own)

    def _there(self, node: Node, seats: Iterable[int]) -> Iterator[int]:
        own = None if self._own is None else self.learner.seat
        return (seat for seat in seats if seat == own or node.at(seat) or node.members.would_wake(seat))

    async def _rejoined(self, node: Node) -> None:
        """Wait until those are back that were cut off, or have been for too long."""
        loop = asyncio.get_running_loop()
        with node.waiting("clients that were cut off"):
            while (until := self.back_by(node)) > loop.time():
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await node.change()

    def back_by(self, node: Node) -> float:
        """Until when those are waited for that were cut off and have not come back; the past if there is nobody."""
        away = (peer for seat, peer in self._known.items() if node.at(seat) is None)
        losses = (peer.lost_at for peer in away if peer.lost_at is not None)
        return max(losses, default=-math.inf) + self.rules.rejoin_seconds

    async def dismiss(self, node: Node, peers: Iterable[Peer]) -> None:
        """Let those sleep who sleep until they are called."""
        await node.dismiss(peer for peer in peers if peer.seat is not None and node.members.on_call(peer.seat))

    async def train(self, node: Node, cohort: Cohort, ask: Train) -> Collected:
        """Let the cohort train; the mean of the updates, once there are enough of them or no time is left."""
        enough = min(self.rules.enough(len(self._everybody)), len(cohort))
        harvest = _Harvest(node, cohort, self, ask.round)
        replies = node.ask_all(cohort.peers, ask, rejoin_seconds=self._patience(node))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None) as limit, replies:
                if cohort.own:
                    await self._train_too(node, ask, harvest)  # meanwhile, the others train
                async for peer, update in replies:
                    try:
                        await harvest.take(peer, update)
                    except (RemoteProtocolError, ValueError) as error:
                        self._missed(node, ask.round, peer, error)
                        continue
                    if self._attendance.came(_seat(peer)):
                        node.emit(ClientReadmitted(ask.round + 1, peer.name))
                    if harvest.mean.count >= enough:
                        if not self.rules.grace_seconds:
                            break
                        _shorten(limit, self.rules.grace_seconds)
        for peer, failure in replies.failed.items():
            self._missed(node, ask.round, peer, failure)
        if harvest.mean.count < enough or self.rules.grace_seconds:
            for peer in _by_seat(replies.waiting):
                self._missed(node, ask.round, peer, TimeoutError(_LATE))
        await self.dismiss(node, cohort.peers)
        return harvest.collected()

    async def _train_too(self, node: Node, ask: Train, harvest: _Harvest) -> None:
        """As one of the clients. Who fails at it is missing in this round, and goes on to coordinate."""
        assert self._own is not None, "only who trains is in a cohort"
        try:
            await harvest.take(None, await self._own.own_update(node, ask))
        except (ComputeError, RemoteProtocolError, ValueError) as error:
            node.emit(UpdateMissing.because(ask.round + 1, node.name, error))

    def _patience(self, node: Node) -> float:
        """Seconds for who is cut off. Who sleeps until it is dialled does not come back by itself."""
        return self.rules.rejoin_seconds if len(self.awake(node)) == len(self.seats) else 0.0

    def _missed(self, node: Node, round: int, peer: Peer, error: Exception) -> None:
        node.emit(UpdateMissing.because(round + 1, peer.name, error))
        if rounds := self._attendance.failed(_seat(peer), round):
            node.emit(ClientExcluded(round + 1, peer.name, rounds, str(error)))

    async def evaluate(self, node: Node, ask: Evaluate) -> Score:
        """Let all clients evaluate, each on its own examples; the mean weighted by their numbers."""
        await self.assemble(node, at_least=1)
        there = self._there(node, self.seats)
        scores: list[Score] = [] if self._own is None else [await self._own.own_score(ask)]
        while seats := list(islice(there, _AT_ONCE)):
            batch = await node.call(seats)
            scores += await self._scores(node, batch, ask)
            await self.dismiss(node, batch)
        return Score(
            _mean((score.loss, score.num_examples) for score in scores),
            _mean((score.accuracy, score.num_examples) for score in scores),
            sum(score.num_examples for score in scores),
        )

    async def finish(self, node: Node, ask: Finish) -> None:
        """Give the result to all who are awake; who is cut off at this moment has a little time to come back for it."""
        linger = max(_LINGER_SECONDS, self._patience(node))
        peers = {*self._known.values(), *await node.meet(self.awake(node), at_least=0)}
        with suppress(TimeoutError):
            async with asyncio.timeout(linger), node.ask_all(peers, ask, rejoin_seconds=linger) as replies:
                async for _ in replies:
                    pass

    async def _scores(self, node: Node, clients: Sequence[Peer], ask: Evaluate) -> list[Score]:
        scores: list[Score] = []
        replies = node.ask_all(clients, ask, rejoin_seconds=self._patience(node))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None), replies:
                async for _, score in replies:
                    scores.append(score)
        for peer, error in replies.failed.items():
            node.emit(UpdateMissing.because(ask.round + 1, peer.name, error))
        for peer in _by_seat(replies.waiting):
            node.emit(UpdateMissing(ask.round + 1, peer.name, _LATE, "late"))
        return scores


class _Harvest:
    """The updates of one round, as they come."""

    def __init__(self, node: Node, cohort: Cohort, clients: Clients, round: int) -> None:
        own = [clients.learner.seat] if cohort.own else []
        self.mean = WeightedMean(sorted([*map(_seat, cohort.peers), *own]))
        self._node = node
        self._clients = clients
        self._round = round
        self._losses: list[tuple[float | None, int]] = []
        self._contributions: list[Contribution] = []

    async def take(self, peer: Peer | None, update: Update) -> None:
        """`peer`: whose update it is; None: our own. Raises RemoteProtocolError or ValueError if it cannot be used."""
        learner, rules = self._clients.learner, self._clients.rules
        seat, peer_id = (learner.seat, self._node.id) if peer is None else (_seat(peer), peer.id)
        if update.round != self._round:
            raise RemoteProtocolError(f"an update of round {update.round + 1} came")
        if update.num_examples > rules.most_examples:
            raise RemoteProtocolError(
                f"an update of {update.num_examples} examples came; course.most_examples is {rules.most_examples}"
            )
        vector = self._clients.up.vector(update.params)
        weight = update.num_examples if rules.by_examples else 1
        self.mean.add(seat, vector, weight)
        self._losses.append((update.loss, update.num_examples))
        if self._clients.certify:
            digest = await learner.digest(vector)
            self._contributions.append(Contribution(seat, peer_id, digest, float(weight)))

    def collected(self) -> Collected:
        num_examples = sum(examples for _, examples in self._losses)
        by_seat = tuple(sorted(self._contributions, key=lambda each: each.seat))
        return Collected(self.mean.value(), self.mean.count, num_examples, _mean(self._losses), by_seat)


def _shorten(limit: asyncio.Timeout, seconds: float) -> None:
    """Let it end in so many seconds, if it would not end before."""
    until = asyncio.get_running_loop().time() + seconds
    limit.reschedule(min(limit.when() or math.inf, until))


def _seat(peer: Peer) -> int:
    return -1 if peer.seat is None else peer.seat


def _by_seat(peers: Iterable[Peer]) -> list[Peer]:
    return sorted(peers, key=lambda peer: (peer.seat is None, peer.seat, peer.id))


def _shuffled(seats: Sequence[int], rng: Random) -> Iterator[int]:
    """All seats in a random order, at a cost that depends on how many are taken: R. A. Fisher and F. Yates, 1938."""
    moved: dict[int, int] = {}  # the places that hold another seat by now
    for left in range(len(seats), 0, -1):
        place = rng.randrange(left)
        yield seats[moved.get(place, place)]
        moved[place] = moved.pop(left - 1, left - 1)


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    """The weighted mean of those numbers that are there; exact, so that the order does not matter."""
    there = [(value, weight) for value, weight in weighted if value is not None and weight > 0]
    total = sum(weight for _, weight in there)
    return math.fsum(value * weight for value, weight in there) / total if total else None
