"""Asynchronous federated learning: the server waits for some of those who train, and goes on while the others do.

FedBuff: J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba: "Federated Learning with Buffered
Asynchronous Aggregation", AISTATS 2022, https://arxiv.org/abs/2106.06639. FedAsync: C. Xie, S. Koyejo, I. Gupta:
"Asynchronous Federated Optimization", 2019, https://arxiv.org/abs/1903.03934. What ends a round, and when clients get
the next model, are the events of FederatedScope: Y. Xie et al., VLDB 2023, https://arxiv.org/abs/2204.05011.

A round is one aggregation, and its number the version of the model. Of K updates d_i, of clients with n_i examples that
began s_i versions ago, each has kept s(s_i) of its weight:

    fedbuff     x <- x + server_lr sum_i(n_i s(s_i) d_i) / sum_i(n_i)        d_i = what training has added
    fedasync    x <- (1 - a) x + a y,  a = mixing s(s_1)                     y = the model of a single client

Deviations: in one round a client is asked once, and gives one update, so that it is in a round once; who has given one
waits for the next. What is under way when a server pauses, or dies, is asked for anew, from the newest model.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from p2pfl.courses.fedavg import FedAvgSettings, Server, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Train, Update
from p2pfl.courses.rounds import LATE, Clients, Cohort, Collected, Harvest, seat_of, stopwatch
from p2pfl.courses.rules import Averaging, Rule, Trained, Training, averaging
from p2pfl.courses.staleness import Staleness
from p2pfl.errors import P2pflError, require
from p2pfl.node.events import RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["FEDASYNC", "FEDBUFF", "AsyncSettings", "FedAsyncSettings", "FedBuffSettings"]


@dataclass(frozen=True, slots=True)
class Pace:
    """What ends a round, if it is not that all have answered."""

    goal: int = 1  # updates
    seconds: float = math.inf
    eager: bool = False  # whether others are asked as soon as one has answered


@dataclass(frozen=True, slots=True)
class AsyncSettings(FedAvgSettings):
    """What both courses have in their table [course]."""

    concurrency: int = 0
    """So many clients train at a time; 0: all."""
    discount: str = "polynomial"
    """What an update keeps of its weight that began t versions of the model ago: `polynomial`, (1 + t)^-a; `hinge`, all
    until t = b, then 1 / (a (t - b) + 1); `exponential`, e^(-a t); `constant`, all."""
    discount_a: float = 0.5
    discount_b: float = 4.0
    staleness_tolerance: int = 20
    """An update that began more versions ago is dropped."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        Staleness(self.discount, self.discount_a, self.discount_b)  # which checks them
        for name in ("concurrency", "staleness_tolerance"):
            require(getattr(self, name) >= 0, f"course.{name} is {getattr(self, name)}; it must not be negative")
        for name, only in _OF_ROUNDS.items():
            value = getattr(self, name)
            require(value == only, f"course.{name} is {value}, which {self.name} has no use for; leave it out")

    @property
    def pace(self) -> Pace:
        return Pace()

    @property
    def staleness(self) -> Staleness:
        return Staleness(self.discount, self.discount_a, self.discount_b)


_OF_ROUNDS = {"fraction": 1.0, "over_selection": 0.0, "quorum": 1.0, "grace_seconds": 0.0, "privacy": "plain"}


@dataclass(frozen=True, slots=True)
class FedBuffSettings(AsyncSettings):
    """The table [course] of a course file. `deadline_seconds` is for the training of one client."""

    name: str = "fedbuff"
    goal: int = 4
    """A round ends with so many updates."""
    time_seconds: float = 0.0
    """It ends after so long, too, if there is an update by then; 0: it does not."""
    broadcast: str = "after_receiving"
    """When others are asked to train: `after_receiving` one's update, or `after_aggregating` those of a round."""
    server_lr: float = 1.0
    """How far the model goes along the mean of the updates."""

    def __post_init__(self) -> None:
        AsyncSettings.__post_init__(self)
        require(self.goal >= 1, f"course.goal is {self.goal}; it must be at least 1")
        require(self.time_seconds >= 0, f"course.time_seconds is {self.time_seconds}; it must not be negative")
        require(0 < self.server_lr < math.inf, f"course.server_lr is {self.server_lr}; it must be above 0")
        known = ("after_receiving", "after_aggregating")
        require(
            self.broadcast in known, f"course.broadcast is {self.broadcast!r}; it must be one of {', '.join(known)}"
        )

    @property
    def pace(self) -> Pace:
        return Pace(self.goal, self.time_seconds or math.inf, self.broadcast == "after_receiving")


@dataclass(frozen=True, slots=True)
class FedAsyncSettings(AsyncSettings):
    """The table [course] of a course file. `deadline_seconds` is for the training of one client."""

    name: str = "fedasync"
    mixing: float = 0.6
    """The share that a client's model has in the next one, if it is not stale."""

    def __post_init__(self) -> None:
        AsyncSettings.__post_init__(self)
        require(0 < self.mixing <= 1, f"course.mixing is {self.mixing}; it must lie in (0, 1]")
        require(not self.diagnose, "course.diagnose compares the updates of a round, of which fedasync has one each")


_Heard = dict[int, int | None]  # whose answers came in a round: how old they were, or None if they were of no use


class Answer(NamedTuple):
    """What came of asking a client."""

    peer: Peer
    seat: int
    version: int
    seconds: float  # that it took
    outcome: Update | P2pflError | TimeoutError


class AtWork:
    """The clients that train, each in a task of its own, and what they answer, in the order in which it comes."""

    def __init__(self, node: Node, clients: Clients, group: asyncio.TaskGroup) -> None:
        self._node = node
        self._clients = clients
        self._group = group
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by seat, until the answer is taken
        self._peers: dict[int, Peer] = {}
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()

    @property
    def seats(self) -> Iterable[int]:
        """Where they sit."""
        return self._tasks.keys()

    def ask(self, cohort: Cohort, ask: Train) -> None:
        """Ask all of a cohort."""
        for peer in cohort.peers:
            seat = seat_of(peer)
            self._peers[seat] = peer
            self._tasks[seat] = self._group.create_task(self._ask(seat, peer, ask), name=f"ask seat {seat}")

    async def next(self, until: float) -> Answer | None:
        """The next answer; None: there is none by then, on the loop's clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if until == math.inf else until):
                answer = await self._answers.get()
                del self._tasks[answer.seat], self._peers[answer.seat]
                return answer
        return None

    async def stop(self) -> None:
        """Nobody need answer any more."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await self._clients.dismiss(self._node, self._peers.values())

    def __len__(self) -> int:
        return len(self._tasks)

    async def _ask(self, seat: int, peer: Peer, ask: Train) -> None:
        watch = stopwatch()
        outcome = await self._outcome(peer, ask)
        seconds = watch()
        await self._clients.dismiss(self._node, [peer])
        self._answers.put_nowait(Answer(peer, seat, ask.round, seconds, outcome))

    async def _outcome(self, peer: Peer, ask: Train) -> Update | P2pflError | TimeoutError:
        replies = self._node.ask_all((peer,), ask, rejoin_seconds=self._clients.patience(self._node))
        try:
            async with asyncio.timeout(self._clients.rules.deadline_seconds or None), replies:
                async for _, update in replies:
                    return update
        except TimeoutError:
            return TimeoutError(LATE)
        return replies.failed[peer]


class AsyncServer(Server, ABC):
    """A coordinator that goes on to the next version of the model while clients still train from earlier ones."""

    _settings: AsyncSettings
    _at_work: AtWork

    async def lead(self, node: Node) -> str:
        async with asyncio.TaskGroup() as group:
            self._at_work = AtWork(node, self._clients, group)
            reason = await super().lead(node)
            await self._at_work.stop()
        return reason

    @abstractmethod
    def _step(self, mean: Tensor, discount: float) -> Tensor:
        """The next model, from the mean of updates that have kept so much of their weight."""

    async def _collect(self, node: Node, round: int) -> Collected:
        """Take updates as they come, until there are enough, and make the next model of them."""
        pace, ask = self._settings.pace, self._ask(round)
        until = asyncio.get_running_loop().time() + pace.seconds
        harvest, heard = Harvest(node, self._clients, range(pace.goal), self._diagnosis(ask)), _Heard()
        await self._ask_more(node, ask, heard)
        node.emit(RoundStarted(round + 1, len(self._at_work)))
        while self._at_work and harvest.mean.count < pace.goal:
            answer = await self._at_work.next(until)
            if answer is not None:
                heard[answer.seat] = await self._take(node, harvest, answer, round)
            elif harvest.mean.count:
                break
            else:
                until += pace.seconds
            if pace.eager and harvest.mean.count < pace.goal:
                await self._ask_more(node, ask, heard)
        ages = [age for age in heard.values() if age is not None]
        collected = harvest.collected(**({"staleness": sum(ages) / len(ages)} if ages else {}))
        if collected.mean is not None:
            share = collected.count / self._clients.total
            step = self._step(collected.mean, collected.discount)
            self.params = self._central.absorb(self.params, step, share, round)
        return collected

    async def _ask_more(self, node: Node, ask: Train, heard: _Heard) -> None:
        """Have as many train as may at a time, but for those that were heard in this round. Waits while nobody can."""
        most = self._settings.concurrency or self._clients.total
        room = most - len(self._at_work)
        if not self._at_work and not heard:
            self._at_work.ask(await self._clients.cohort(node, ask.round, many=room), ask)
        elif room:
            but = {*self._at_work.seats, *heard}
            self._at_work.ask(await self._clients.draw(node, ask.round, room, len(heard), but=but), ask)

    async def _take(self, node: Node, harvest: Harvest, answer: Answer, round: int) -> int | None:
        """Take an answer: how many versions of the model ago it began, or None if it is of no use."""
        age, outcome = round - answer.version, answer.outcome
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if age > (most := self._settings.staleness_tolerance):
                raise TimeoutError(f"it began {age} versions of the model ago; course.staleness_tolerance is {most}")
            kept = self._settings.staleness(age)
            await harvest.take(answer.peer, outcome, answer.version, rank=harvest.mean.count, discount=kept)
        except (P2pflError, TimeoutError, ValueError) as error:
            self._clients.missed(node, round, answer.peer, error, answer.seconds)
            return None
        self._clients.came(node, answer.peer, outcome, answer.seconds)
        return age


class Buffering(AsyncServer):
    """FedBuff's."""

    _settings: FedBuffSettings

    def _step(self, mean: Tensor, discount: float) -> Tensor:
        return torch.add(self.params, mean, alpha=self._settings.server_lr * discount)


class Mixing(AsyncServer):
    """FedAsync's."""

    _settings: FedAsyncSettings

    def _step(self, mean: Tensor, discount: float) -> Tensor:
        return torch.lerp(self.params, mean, self._settings.mixing * discount)


class Adding(Training):
    """A client that sends what training has added to the model."""

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        found = await learner.fit(received, round)
        return Trained(found.params - received, found.num_examples, found.loss)


def _additions(learner: Learner, _: FedBuffSettings) -> Rule:
    return Rule(learner.parts, learner.parts, Averaging, Adding, relative=True)


def _models(learner: Learner, _: FedAsyncSettings) -> Rule:
    return averaging(learner)


FEDBUFF = starred("fedbuff", FedBuffSettings, _additions, server=Buffering)
FEDASYNC = starred("fedasync", FedAsyncSettings, _models, server=Mixing)
