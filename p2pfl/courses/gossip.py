"""What courses without a coordinator share: how long they go on, how each node measures itself and how far it is from
its neighbours, and how one that comes late, or comes back, goes on where the others are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Collection, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.durable import Durable
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import number
from p2pfl.courses.scores import CLIENT
from p2pfl.errors import (
    ComputeError,
    ConfigError,
    CourseError,
    LinkError,
    RemoteError,
    RemoteProtocolError,
    require,
)
from p2pfl.journal.journal import Journal
from p2pfl.learn.train import FitResult
from p2pfl.node.connection import Connection
from p2pfl.node.events import CourseEnded, Event, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.schedule import Schedule
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = [
    "CaughtUp",
    "GossipSettings",
    "Gossiping",
    "Lead",
    "Pace",
    "Pull",
    "Pulled",
    "Release",
    "Released",
    "Standing",
    "Training",
    "WentOnAlone",
    "begin",
    "catch_up",
    "consensus_distance",
    "links",
    "neighborhood",
    "part",
]

_FEW_ROUNDS = 3  # by which a neighbour may be ahead before a node goes on where that neighbour is
_MEET_SECONDS = 2.0  # so long for all neighbours; in the middle of a course no longer, since some may be gone for good
_PULL_SECONDS = 60.0  # in which a neighbour gives its model, or the next one is asked


@dataclass(frozen=True, slots=True)
class GossipSettings:
    rounds: int = 30
    """How often each node trains and averages."""
    evaluate_every: int = 1
    """Rounds between two evaluations."""
    evaluate: str = "test"
    """Each node evaluates its own model on the `test` part; as `clients` do, on the examples that it holds out, or on
    all of its own if it holds none out; on `both`; or on `none`."""
    evaluators: int = -1
    """The first so many seats evaluate; -1: all."""
    rejoin_seconds: float = 30.0
    """A neighbour that is cut off near the end has so long to come back and learn how it ended."""

    def __post_init__(self) -> None:
        require(self.rejoin_seconds >= 0, f"course.rejoin_seconds is {self.rejoin_seconds}; it must not be negative")
        for name in ("rounds", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"course.{name} is {getattr(self, name)}; it must be at least 1")
        choices = ("test", "clients", "both", "none")
        sentence = f"course.evaluate is {self.evaluate!r}; it must be one of {', '.join(choices)}"
        require(self.evaluate in choices, sentence)

    @property
    def is_personal(self) -> bool:
        """Whether each node's model is meant for its own examples, and measured on them, too."""
        return False

    def is_due(self, seat: int, round: int) -> bool:
        """Whether this seat evaluates after this round (from 0)."""
        chosen = self.evaluators < 0 or seat < self.evaluators
        return chosen and ((round + 1) % self.evaluate_every == 0 or round + 1 == self.rounds)

    async def measure(
        self, learner: Learner, params: Tensor, round: int, fitted: FitResult | None, distance: float | None = None
    ) -> dict[str, float]:
        """The metrics of one node after a round (from 0). `fitted` is None where it has not trained."""
        found = {"train_loss": None if fitted is None else number(fitted.loss), "consensus_distance": number(distance)}
        told = {name: value for name, value in found.items() if value is not None}
        if not self.is_due(learner.seat, round):
            return told
        if self.evaluate in ("test", "both") and learner.test is not None:
            told |= (await learner.evaluate(params, learner.test)).figures
        if self.is_personal or self.evaluate in ("clients", "both"):
            own = (await learner.evaluate(params, learner.at(round).measured)).figures
            told |= {f"{CLIENT}{name}": value for name, value in own.items()}
        return told


class Training:
    """Our own training in each round. Who fails at it in one round is still needed by others, and goes on untrained."""

    def __init__(self) -> None:
        self._succeeded = False
        self._failure: ComputeError | None = None

    async def fit(self, node: Node, learner: Learner, params: Tensor, round: int) -> FitResult | None:
        """See Learner.fit. None if it has failed, which is told."""
        return await self.attempt(node, round, learner.fit(params, round))

    async def attempt(self, node: Node, round: int, training: Awaitable[FitResult]) -> FitResult | None:
        """What our training in a round gives. None if it has failed, which is told."""
        try:
            fitted = await training
        except ComputeError as error:
            self._failure = error
            node.emit(UpdateMissing.because(round + 1, node.name, error))
            return None
        self._succeeded = True
        return fitted

    def check(self) -> None:
        """In the end. Raises CourseError if it has failed, and never succeeded."""
        if self._failure is not None and not self._succeeded:
            raise CourseError(f"in no round has this node trained; at last {self._failure}") from self._failure


def consensus_distance(own: Tensor, heard: Iterable[Tensor]) -> float | None:
    """sqrt(mean over j of ||x_j - x_i||^2): how far the models that a node has heard are from its own, flat vectors.

    None if none was heard. Models that are not finite do not count.

    >>> consensus_distance(torch.zeros(2), [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])])
    3.605551275463989
    """
    squares = [square for model in heard if math.isfinite(square := float(torch.dist(model, own)) ** 2)]
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else None


# -- coming late -------------------------------------------------------------------------------------------------------


class Pulled(Message):
    """The round that the answering node is in, from 0; and its model, where the asker is a few rounds behind."""

    round: int
    params: Tensors | None

    def __post_init__(self) -> None:
        if self.round < 0:
            raise ValueError(f"round is {self.round}; it must not be negative")


class Pull(Request[Pulled]):
    """I am in this round, from 0. Where are you?"""

    round: int

    def answer(self, learner: Learner, round: int, params: Tensor, *, over: bool) -> Pulled:
        """The answer of a node that is in `round` with this model; `over`: it plays no more rounds."""
        ahead = round > self.round if over else round > self.round + _FEW_ROUNDS
        return Pulled(round, learner.tensors(params) if ahead else None)


@dataclass(frozen=True, slots=True)
class CaughtUp(Event):
    """The node was rounds behind, and goes on in the round, from 1, that a neighbour is in."""

    behind: int
    round: int
    peer: str

    def __str__(self) -> str:
        return f"was in round {self.behind}, and goes on with {self.peer} in round {self.round}"


@dataclass(frozen=True, slots=True)
class WentOnAlone(Event):
    """The node came late, or back, and its neighbours had left or died: it plays from this round on, from 1, alone."""

    round: int
    seats: tuple[int, ...]

    def __str__(self) -> str:
        seats = ", ".join(map(str, self.seats))
        return f"nobody of seats {seats} is there any more: it goes on alone in round {self.round}"


@dataclass(frozen=True, slots=True)
class Lead:
    """Where a neighbour is that is ahead."""

    round: int
    params: Tensor


async def begin(
    node: Node,
    learner: Learner,
    seats: Iterable[int],
    round: int,
    rejoin_seconds: float | None = None,
    *,
    alone: bool = False,
) -> Lead | None:
    """Link to the neighbours, in the round (from 0) that we would go on with; where one of them is, if we are late.

    At the beginning of a course all have to be there. In the middle of one, whoever is there has to do, and after
    `rejoin_seconds` nobody, which is told. `alone`: so it is in the first round, if all are known to have been there.
    """
    wanted, patience = frozenset(seats), _MEET_SECONDS
    while True:
        if not await _meet_anybody(node, wanted, rejoin_seconds, in_the_middle=round > 0, alone=alone):
            node.emit(WentOnAlone(round + 1, tuple(sorted(wanted))))
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await node.meet(wanted)
        linked = await node.meet(wanted, at_least=0)
        found, lead = await _pull(node, learner, linked, round)
        if lead is not None or found or round or len(linked) == len(wanted):
            return lead
        patience *= 2  # so that what it waits for is told


async def _meet_anybody(
    node: Node, wanted: Collection[int], rejoin_seconds: float | None, *, in_the_middle: bool, alone: bool
) -> bool:
    """Whether one of these is linked in time. They have as long as they like where they may not have begun."""
    patience = None if rejoin_seconds is None else max(rejoin_seconds, _MEET_SECONDS)
    while True:
        begun = in_the_middle or (alone and all(node.members.at(seat) is not None for seat in wanted))
        try:
            async with asyncio.timeout(patience):
                await node.meet(wanted, at_least=1)
        except TimeoutError:
            if begun:
                return False
        else:
            return True


async def catch_up(node: Node, learner: Learner, seats: Collection[int], round: int) -> Lead | None:
    """Where the first of these neighbours is that answers, if it is more than a few rounds ahead of `round`."""
    peers = [peer for seat in sorted(seats) if (peer := node.at(seat)) is not None]
    return (await _pull(node, learner, peers, round))[1]


async def _pull(node: Node, learner: Learner, peers: Iterable[Peer], round: int) -> tuple[int, Lead | None]:
    """The round of the first who answers; and where it is, if we are to go on there."""
    for peer in peers:
        try:
            async with asyncio.timeout(_PULL_SECONDS):
                found = await peer.ask(Pull(round))
            if found.params is None:
                return found.round, None
            lead = Lead(found.round, learner.vector(found.params))
        except (LinkError, RemoteError, RemoteProtocolError, TimeoutError):
            continue  # it is gone, or is not playing yet; the next may do
        node.emit(CaughtUp(round + 1, lead.round + 1, peer.name))
        return lead.round, lead
    return 0, None


def links(node: Node, seats: Iterable[int]) -> dict[int, Connection]:
    """The links to those who sit there and are linked: what was under way on another one is lost."""
    return {seat: peer.connection() for seat in seats if (peer := node.at(seat)) is not None}


class Pace:
    """How far each neighbour is, as far as its messages tell."""

    def __init__(self) -> None:
        self._rounds: dict[int, int] = {}  # seat -> of its last message

    def note(self, seat: int, round: int) -> None:
        """This neighbour sent something of this round."""
        self._rounds[seat] = round

    def reached(self, seat: int, round: int) -> bool:
        """Whether it is in this round, or beyond: then nothing of an earlier one comes from it any more."""
        return self._rounds.get(seat, -1) >= round

    def anybody_beyond(self, round: int) -> bool:
        """Whether there may be one of whom `is_beyond` holds."""
        return max(self._rounds.values(), default=-1) > round + _FEW_ROUNDS

    def is_beyond(self, seats: Collection[int], round: int) -> bool:
        """Whether all of these are so far beyond this round that we had better go on where they are.

        One that is with us is enough to stay: it goes on with us, and together we catch up or merge later.
        """
        return bool(seats) and all(self.reached(seat, round + _FEW_ROUNDS + 1) for seat in seats)


# -- the end -----------------------------------------------------------------------------------------------------------


class Released(Message):
    """I need you no longer."""


class Release(Request[Released]):
    """I start no more exchanges. Answer as soon as you start none either, so that I can go."""


class Standing(Message):
    """Do not wait for anything of mine of this round, from 0, or of an earlier one."""

    round: int


async def part(
    node: Node,
    seats: Collection[int],
    rejoin_seconds: float,
    *,
    all_of_them: bool = True,
    standing: Standing | None = None,
) -> None:
    """Stay to answer until every neighbour is through, or gone; who was cut off has a while to come back.

    Not `all_of_them`: only those who were cut off a short while ago. The others do not need us. `standing`: what to
    tell those who wait for us, as who comes back may.
    """
    members = (node.members.at(seat) for seat in seats)
    neighbors = [node.peer(member.id) for member in members if member is not None]
    since = asyncio.get_running_loop().time() - rejoin_seconds
    lost = {peer for peer in neighbors if peer.lost_at is not None and peer.lost_at > since}
    staying = {peer for peer in neighbors if peer.connected} if all_of_them else set()
    greeting = None if standing is None else asyncio.create_task(_greet(node, seats, standing))
    try:
        with node.waiting("neighbours that were cut off") if lost else nullcontext():
            async with node.ask_all(staying | lost, Release(), rejoin_seconds=rejoin_seconds) as replies:
                async for _ in replies:
                    pass
    finally:
        if greeting is not None:
            greeting.cancel()


async def _greet(node: Node, seats: Collection[int], standing: Standing) -> None:
    """Tell it over every link, and over every new one."""
    told: dict[int, Connection] = {}
    while True:
        looked = node.changes
        before, told = told, links(node, seats)
        fresh = [link.peer for seat, link in told.items() if link is not before.get(seat)]
        await node.tell_all(fresh, standing)
        await node.change(looked)


# -- a node ------------------------------------------------------------------------------------------------------------


def neighborhood(schedule: Schedule, seat: int) -> tuple[int, ...]:
    """All whom a seat gives something to in some round, or gets something from."""
    return tuple(sorted({*schedule.union.neighbors(seat), *schedule.union.senders(seat)}))


class Gossiping:
    """One node of the graph: where it is, and what it answers to neighbours who ask. What it plays is its course's."""

    def __init__(
        self,
        learner: Learner,
        settings: GossipSettings,
        neighbors: tuple[int, ...],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`neighbors`: seats that anything is exchanged with. `stop`: the round, from 0, before which to pause."""
        self.params: Tensor = learner.model.initial
        self._learner = learner
        self._settings = settings
        self._neighbors = neighbors
        self._stop = settings.rounds if stop is None else min(stop, settings.rounds)
        self._round = 0  # models of this one and of later ones are kept
        self._training = Training()
        self._durable = Durable(journal)
        self._pace = Pace()
        self._through = asyncio.Event()  # no more rounds are played here

    def _end(self, node: Node) -> None:
        """Tell that it is over, if it is more than a pause. Raises CourseError if our training has always failed."""
        self._training.check()
        if self._stop == self._settings.rounds:
            node.emit(CourseEnded(self._stop, f"all {self._stop} rounds are done"))

    def _public(self) -> Tensor:
        """The model that a neighbour goes on with that comes late."""
        return self.params

    @Pull.handler
    async def pull(self, ask: Pull, peer: Peer) -> Pulled:
        require_seat(peer, *self._neighbors)
        return ask.answer(self._learner, self._round, self._public(), over=self._round >= self._stop)

    @Release.handler
    async def release(self, ask: Release, peer: Peer) -> Released:
        require_seat(peer, *self._neighbors)
        await self._through.wait()
        return Released()
