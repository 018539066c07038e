"""What a coordinator does with its clients: who is asked, and what comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Protocol, TypeVar

from torch import Tensor

from p2pfl.aggregators.mean import WeightedMean
from p2pfl.courses.attendance import Attendance
from p2pfl.courses.diagnosis import Diagnosis
from p2pfl.courses.learner import LARGE, Learner, seed_of
from p2pfl.courses.messages import Evaluate, Finish, Score, Train, Update, number
from p2pfl.courses.parts import Parts
from p2pfl.courses.samplers import SamplerSpec, Seen
from p2pfl.courses.scores import CLIENT, UNSEEN, ClientsEvaluated, Scores, weighted_mean
from p2pfl.errors import AggregationAborted, ComputeError, RemoteProtocolError, require
from p2pfl.journal.certificate import Contribution
from p2pfl.node.events import Event, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.replies import Replies
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors

__all__ = [
    "LATE",
    "ClientExcluded",
    "ClientReadmitted",
    "Clients",
    "Cohort",
    "Collected",
    "Harvest",
    "RoundRules",
    "seat_of",
    "stopwatch",
]

ReplyT = TypeVar("ReplyT", bound=Message)
LATE = "nothing came before the deadline"
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
    unseen: float = 0.0  # share of the clients that never train
    sampling: SamplerSpec = field(default_factory=SamplerSpec)  # whom a cohort is made up of

    def asked(self, clients: int) -> int:
        """How many of so many clients are asked."""
        return min(clients, _ceil(self.expected(clients) * (1 + self.over_selection)))

    def enough(self, clients: int) -> int:
        """How many updates end a round."""
        return max(1, _ceil(self.expected(clients) * self.quorum))

    def unseen_of(self, clients: int) -> int:
        """How many of so many clients never train. One always does."""
        return min(round(self.unseen * clients), clients - 1) if self.unseen else 0

    def expected(self, clients: int) -> int:
        """How many a cohort has that is neither over-selected nor cut short."""
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
    discount: float = 1.0  # how much of their weight the updates have kept together
    metrics: Mapping[str, float] = field(default_factory=dict)  # what else is to be told of the round


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
        everybody = self.seats if own is None else tuple(sorted((*self.seats, learner.seat)))
        drawn = Random(seed_of(learner.seed, "unseen")).sample(everybody, rules.unseen_of(len(everybody)))
        self.unseen = frozenset(drawn)
        """The seats that never train."""
        self._trainers = tuple(seat for seat in everybody if seat not in self.unseen)
        self.certify = certify
        self._awake: tuple[int, ...] | None = None
        self._known: dict[int, Peer] = {}  # those that have been linked, except for who sleeps in between
        self._attendance = Attendance(rules.exclude_after)
        self.sampler = rules.sampling.sampler()

    @property
    def total(self) -> int:
        """How many clients train, the coordinator included if it is one."""
        return len(self._trainers)

    def awake(self, node: Node) -> tuple[int, ...]:
        """Those that are to be linked all the time. The others sleep until they are called; see Membership.on_call."""
        if self._awake is None:
            self._awake = tuple(seat for seat in self.seats if not node.members.on_call(seat))
            require(
                self.sampler.lazy or len(self._awake) == len(self.seats),
                f"course.sampler is {self.rules.sampling.name!r}, which looks at every client, and here these sleep; "
                "set it to 'uniform', or simulate fewer clients",
            )
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

    async def cohort(self, node: Node, round: int, *salt: object, many: int | None = None) -> Cohort:
        """Whom this round asks, by seat: drawn from those who are there. Waits while nobody is. `salt` seeds it, too.

        `many`: how many, if not as many as the rules say.

        Who was cut off a short while ago is waited for. Who fails all the time is left out, if others are there.
        """
        many = self.rules.asked(self.total) if many is None else many
        while True:
            await self.assemble(node, at_least=1)
            await self._rejoined(node)
            if cohort := await self.draw(node, round, many, *salt):
                return cohort
            rng = Random(seed_of(self.learner.seed, "cohort", *salt, round))
            if cohort := await self._call(node, self.sampler.draw(self._trainers, self._there(node), many, rng)):
                return cohort
            await asyncio.sleep(_PAUSE_SECONDS)  # all who sleep are away, and nobody tells when they come back

    async def draw(self, node: Node, round: int, many: int, *salt: object, but: Collection[int] = ()) -> Cohort:
        """So many of those who are there and not left out, or all if they are fewer; nobody of the seats `but`."""
        there = self._there(node)

        def admits(seat: int) -> bool:
            return there(seat) and self._attendance.admits(seat, round) and seat not in but

        rng = Random(seed_of(self.learner.seed, "cohort", *salt, round))
        return await self._call(node, self.sampler.draw(self._trainers, admits, many, rng))

    async def _call(self, node: Node, drawn: Collection[int]) -> Cohort:
        own = self._own is not None and self.learner.seat in drawn
        return Cohort(tuple(await node.call(seat for seat in drawn if not own or seat != self.learner.seat)), own)

    def _there(self, node: Node) -> Callable[[int], bool]:
        own = None if self._own is None else self.learner.seat
        return lambda seat: seat == own or node.at(seat) is not None or node.members.would_wake(seat)

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

    async def train(self, node: Node, cohort: Cohort, ask: Train, diagnosis: Diagnosis | None = None) -> Collected:
        """Let the cohort train; the mean of the updates, once there are enough of them or no time is left.

        `diagnosis`: what the updates are to be looked at with.
        """
        own = [self.learner.seat] if cohort.own else []
        harvest = Harvest(node, self, sorted([*map(seat_of, cohort.peers), *own]), diagnosis)

        async def take(peer: Peer, update: Update, seconds: float) -> None:
            await harvest.take(peer, update, ask.round)
            self.came(node, peer, update, seconds)

        async def train_too() -> int:
            await self._train_too(node, ask, harvest)  # meanwhile, the others train
            return harvest.mean.count

        enough = min(self.rules.enough(len(self._trainers)), len(cohort))
        replies = node.ask_all(cohort.peers, ask, rejoin_seconds=self.patience(node))
        await self._gather(replies, node, ask.round, take, enough, train_too if cohort.own else None)
        await self.dismiss(node, cohort.peers)
        return harvest.collected()

    async def _gather(
        self,
        replies: Replies[ReplyT],
        node: Node,
        round: int,
        take: Callable[[Peer, ReplyT, float], Awaitable[None]],
        enough: int,
        first: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """Take what clients answer, with the seconds that it took, until there is enough or no time is left.

        `take` raises AggregationAborted, RemoteProtocolError or ValueError for what cannot be used. Who gives nothing
        of use is missed. `first`: what we do ourselves before we look at answers; how many that are.
        """
        watch, came = stopwatch(), 0
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None) as limit, replies:
                if first is not None:
                    came = await first()
                async for peer, reply in replies:
                    try:
                        await take(peer, reply, watch())
                    except (AggregationAborted, RemoteProtocolError, ValueError) as error:
                        self.missed(node, round, peer, error, watch())
                        continue
                    came += 1
                    if came >= enough:
                        if not self.rules.grace_seconds:
                            break
                        _shorten(limit, self.rules.grace_seconds)
        for peer, failure in replies.failed.items():
            self.missed(node, round, peer, failure, watch())
        self._outrun(node, round, replies.waiting, watch(), late=came < enough)

    async def _train_too(self, node: Node, ask: Train, harvest: Harvest) -> None:
        """As one of the clients. Who fails at it is missing in this round, and goes on to coordinate."""
        assert self._own is not None, "only who trains is in a cohort"
        try:
            await harvest.take(None, await self._own.own_update(node, ask), ask.round)
        except (ComputeError, RemoteProtocolError, ValueError) as error:
            node.emit(UpdateMissing.because(ask.round + 1, node.name, error))

    def patience(self, node: Node) -> float:
        """Seconds for who is cut off. Who sleeps until it is dialled does not come back by itself."""
        return self.rules.rejoin_seconds if len(self.awake(node)) == len(self.seats) else 0.0

    def came(self, node: Node, peer: Peer, update: Update, seconds: float) -> None:
        """A client has given what it was asked for so many seconds ago, and it can be used."""
        self.sampler.note(seat_of(peer), Seen(seconds, update.num_examples, number(update.loss), update.round))
        self._welcome(node, peer, update.round)

    def _welcome(self, node: Node, peer: Peer, round: int) -> None:
        """It has done what it was asked for."""
        if self._attendance.came(seat_of(peer)):
            node.emit(ClientReadmitted(round + 1, peer.name))

    def missed(self, node: Node, round: int, peer: Peer, error: Exception, seconds: float) -> None:
        """A client that was asked so many seconds ago gave nothing, or nothing of use."""
        seat = seat_of(peer)
        if isinstance(error, TimeoutError):  # who fails at once is not fast
            self.sampler.note(seat, Seen(seconds, round=round))
        node.emit(UpdateMissing.because(round + 1, peer.name, error))
        if rounds := self._attendance.failed(seat, round):
            node.emit(ClientExcluded(round + 1, peer.name, rounds, str(error)))

    def _outrun(self, node: Node, round: int, peers: Iterable[Peer], seconds: float, *, late: bool) -> None:
        """The round ends without these. They are late, unless there was a quorum that waits for nobody."""
        for peer in _by_seat(peers):
            if late or self.rules.grace_seconds:
                self.missed(node, round, peer, TimeoutError(LATE), seconds)
            else:
                self.sampler.note(seat_of(peer), Seen(seconds, round=round))

    async def figures(self, node: Node, round: int, served: Tensors) -> dict[str, float]:
        """What clients find of what they are served by after a round, from 0; apart from that, those who never train.

        What each has found is an event, if it is wanted.
        """
        wanted = self.learner.metrics.clients
        ask = Evaluate(round, served, each=bool(wanted))
        scores = await self.evaluate(node, ask)
        found, each = scores.figures(CLIENT), scores.by_client
        if self.unseen:
            scores = await self.evaluate(node, ask, unseen=True)
            found, each = found | scores.figures(UNSEEN), each | scores.by_client
        if "each" in wanted:
            node.emit(ClientsEvaluated(round + 1, each))
        return found

    async def evaluate(self, node: Node, ask: Evaluate, *, unseen: bool = False) -> Scores:
        """Let all who train evaluate, each on its own examples. `unseen`: those who never train, instead."""
        await self.assemble(node, at_least=1)
        there = filter(self._there(node), (seat for seat in self.seats if (seat in self.unseen) is unseen))
        scores = Scores(self.learner.metrics)
        if self._own is not None and not unseen:
            scores.take(self.learner.seat, await self._own.own_score(ask))
        while seats := list(islice(there, _AT_ONCE)):
            batch = await node.call(seats)
            await self._score(node, batch, ask, scores)
            await self.dismiss(node, batch)
        return scores

    async def finish(self, node: Node, ask: Finish) -> None:
        """Give the result to all who are awake; who is cut off at this moment has a little time to come back for it.

        Who had been given up on before is not waited for.
        """
        linger = max(_LINGER_SECONDS, self.patience(node))
        since = asyncio.get_running_loop().time() - self.rules.rejoin_seconds
        lost = (peer for peer in self._known.values() if peer.lost_at is not None and peer.lost_at > since)
        peers = {*lost, *await node.meet(self.awake(node), at_least=0)}
        with suppress(TimeoutError):
            async with asyncio.timeout(linger), node.ask_all(peers, ask, rejoin_seconds=linger) as replies:
                async for _ in replies:
                    pass

    async def _score(self, node: Node, clients: Sequence[Peer], ask: Evaluate, scores: Scores) -> None:
        replies = node.ask_all(clients, ask, rejoin_seconds=self.patience(node))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.deadline_seconds or None), replies:
                async for peer, score in replies:
                    scores.take(seat_of(peer), score)
        for peer, error in replies.failed.items():
            node.emit(UpdateMissing.because(ask.round + 1, peer.name, error))
        for peer in _by_seat(replies.waiting):
            node.emit(UpdateMissing(ask.round + 1, peer.name, LATE, "late"))


class Harvest:
    """The updates of one round, as they come."""

    def __init__(self, node: Node, clients: Clients, ranks: Iterable[int], diagnosis: Diagnosis | None = None) -> None:
        """`ranks`: in what order updates are added: the seats of those who may give one, or other numbers."""
        self.mean = WeightedMean(ranks)
        self._node = node
        self._clients = clients
        self._diagnosis = diagnosis
        self._losses: list[tuple[float | None, int]] = []
        self._contributions: list[Contribution] = []
        self._weight, self._undiscounted = 0.0, 0.0

    async def take(
        self, peer: Peer | None, update: Update, round: int, *, rank: int | None = None, discount: float = 1.0
    ) -> None:
        """An update that was asked for in a round. `peer`: whose it is; None: our own; `rank`: if it is not the seat.

        Raises RemoteProtocolError or ValueError if it cannot be used.
        """
        learner, rules = self._clients.learner, self._clients.rules
        seat, peer_id = (learner.seat, self._node.id) if peer is None else (seat_of(peer), peer.id)
        if update.round != round:
            raise RemoteProtocolError(f"an update of round {update.round + 1} came")
        if update.num_examples > rules.most_examples:
            raise RemoteProtocolError(
                f"an update of {update.num_examples} examples came; course.most_examples is {rules.most_examples}"
            )
        vector = self._clients.up.vector(update.params)
        whole = update.num_examples if rules.by_examples else 1
        weight = whole * discount
        self.mean.add(seat if rank is None else rank, vector, weight)
        self._weight, self._undiscounted = self._weight + weight, self._undiscounted + whole
        self._losses.append((update.loss, update.num_examples))
        if self._diagnosis is not None:
            await self._diagnose(self._diagnosis, vector, weight)
        if self._clients.certify:
            digest = await learner.digest(vector)
            self._contributions.append(Contribution(seat, peer_id, digest, float(weight)))

    @staticmethod
    async def _diagnose(diagnosis: Diagnosis, vector: Tensor, weight: float) -> None:
        """A large vector keeps the loop waiting for no longer than a small one."""
        if vector.numel() < LARGE:
            diagnosis.add(vector, weight)
        else:
            await asyncio.to_thread(diagnosis.add, vector, weight)

    def collected(self, **metrics: float) -> Collected:
        """What there is of them in the end. `metrics`: what else is to be told."""
        num_examples = sum(examples for _, examples in self._losses)
        by_seat = tuple(sorted(self._contributions, key=lambda each: each.seat))
        discount = self._weight / self._undiscounted if self._undiscounted else 1.0
        count, loss, mean = self.mean.count, weighted_mean(self._losses), self.mean.value()
        if self._diagnosis is not None:
            metrics |= self._diagnosis.figures(mean)
        return Collected(mean, count, num_examples, loss, by_seat, discount, metrics)


def _shorten(limit: asyncio.Timeout, seconds: float) -> None:
    """Let it end in so many seconds, if it would not end before."""
    until = asyncio.get_running_loop().time() + seconds
    limit.reschedule(min(limit.when() or math.inf, until))


def stopwatch() -> Callable[[], float]:
    """Tells the seconds from now on, by the loop's clock."""
    clock = asyncio.get_running_loop().time
    began = clock()
    return lambda: clock() - began


def seat_of(peer: Peer) -> int:
    """Where a client sits; -1 if it has lost its seat."""
    return -1 if peer.seat is None else peer.seat


def _by_seat(peers: Iterable[Peer]) -> list[Peer]:
    return sorted(peers, key=lambda peer: (peer.seat is None, peer.seat, peer.id))
