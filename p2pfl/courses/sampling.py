"""What courses share in which a few nodes work in a round while all others rest, and nobody coordinates.

The sample of round r are the first s of the active nodes in the order of H(node, r), which every node can compute from
its view (see view.py). Whoever has trained gives its model to nodes of the next sample, which average what they get:
how, is the course's. Views go along with all messages.

What holds whatever is lost: a node trains at most once in a round, and its rounds only go up; a mean is of models of
one round, at most one of each node, and its weights add up to one. Who gives a model away waits until it is averaged
and in other hands, and else gives it to the next in order, at last to itself: so the course goes on as long as one of
those lives who hold a model of it. Who hears nothing new for `patience_seconds` asks where the others are, and if
nobody is ahead, those of the sample that is due begin with the models that they have.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import Any, TypeVar

from torch import Tensor

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.gossip import (
    Gossiping,
    GossipSettings,
    Lead,
    Pull,
    Pulled,
    Release,
    Released,
    begin,
    catch_up,
    consensus_distance,
    part,
)
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.messages import Finish, Finished, number
from p2pfl.courses.view import Seen, View, sampled
from p2pfl.errors import LinkError, RemoteError, RemoteProtocolError, require
from p2pfl.journal.journal import Journal
from p2pfl.learn.params import is_finite
from p2pfl.node.events import RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = ["Advert", "Answer", "Box", "Combine", "Combined", "Sampled", "SamplingSettings", "Trained", "sampling"]

_TOLD = 10  # times the sample: so many hear of one that joins or leaves
_ANY_ROUND = -64  # so far behind that the model comes with the answer
_UNANSWERED = (LinkError, RemoteError, RemoteProtocolError, TimeoutError)
AnswerT = TypeVar("AnswerT", bound="Answer")
Trained = tuple[Tensor, float | None]
"""A model, and its loss in training."""


@dataclass(frozen=True, slots=True)
class SamplingSettings(GossipSettings):
    """What every course with samples has."""

    sample: int = 4
    """s: how many nodes train in a round."""
    wait_seconds: float = 60.0
    """Who averages goes on with what has come so long after the first model."""
    patience_seconds: float = 60.0
    """Who has not answered by then is passed over, and who has heard nothing new for so long looks where others are: it
    should be longer than wait_seconds, and than any training."""
    within: int = 0
    """A node is active if it did something in so many rounds; far more than nodes / sample. 0: until it leaves."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        require(self.sample >= 1, f"course.sample is {self.sample}; it must be at least 1")
        require(self.within >= 0, f"course.within is {self.within}; it must not be negative")
        for name in ("wait_seconds", "patience_seconds"):
            value = getattr(self, name)
            require(value > 0, f"course.{name} is {value:g}; it must be above 0")


class Answer(Message):
    """An answer, with the view of who gives it."""

    seen: Seen


class Combined(Answer):
    """The mean is in the hands of the next sample."""


class Combine(Request[Combined]):
    """You are at this position of the next sample: average this model of a round, from 0, with others of that round."""

    round: int
    position: int
    params: Tensors
    loss: float | None
    seen: Seen


class Advert(Message):
    """Somebody has joined or left."""

    seen: Seen


@dataclass(slots=True, eq=False)
class Box:
    """The models of a round that have come to who averages them, by seat."""

    position: int
    """Where it stands in the next sample."""
    models: dict[int, Trained] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Sampled(Gossiping, ABC):
    """One node."""

    _settings: SamplingSettings

    def __init__(
        self,
        learner: Learner,
        settings: SamplingSettings,
        neighbors: tuple[int, ...],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`neighbors`: the seats of all others. `stop`: the round, from 0, before which to pause."""
        super().__init__(learner, settings, neighbors, stop, journal)
        self._view = View(len(neighbors) + 1)
        self._worked = -1  # the last round that we trained in
        self._made = 0  # the highest round whose model was averaged here
        self._furthest = 0  # the highest round of which there was a model when we last looked around
        self._committed = 0  # rounds
        self._boxes: dict[int, Box] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self._ready = asyncio.Event()

    async def run(self, node: Node) -> None:
        node.agree(self._learner.schema)
        lead = await begin(node, self._learner, self._neighbors, self._round)
        if lead is not None:
            self._follow(lead)
        if self._round >= self._stop:
            self._through.set()
        async with self._group:
            self._ready.set()
            self._view.join(self._learner.seat, self._round)
            await self._advertise(node)
            self._begin_if_due(node)
            await self._watch(node)
            for box in self._boxes.values():
                box.over.set()
            for task in self._tasks:
                task.cancel()
        await self._commit(node, self._round, self.params, {})
        await part(node, self._neighbors, self._settings.rejoin_seconds)
        self._end(node)

    async def leave(self, node: Node) -> None:
        """Take part in no more rounds, beyond what is under way, and have the others know."""
        self._view.leave(self._learner.seat)
        await self._advertise(node)

    def state(self) -> RoleState:
        """What was heard of others is heard again."""
        return {"params": self.params, "round": self._round}

    def resume(self, state: RoleState) -> None:
        self.params, self._round = as_tensor(state["params"]), int(state["round"])
        self._committed = self._round

    # -- what the course makes of it -----------------------------------------------------------------------------------

    @abstractmethod
    async def _hand_over(self, node: Node, round: int, position: int, model: Trained) -> None:
        """Give what we have trained at a position of this round to the next sample; see `_give`."""

    @abstractmethod
    def _givers(self, node: Node, round: int, position: int) -> list[int]:
        """Whose models of this round are averaged at a position of the next, if all are there."""

    def _enough(self, models: int) -> int:
        """How many are enough, of so many models that should come."""
        return models

    @abstractmethod
    async def _go_on(self, node: Node, round: int, params: Tensor, position: int) -> None:
        """Have this round begin with the mean that was made at this position."""

    @abstractmethod
    def _is_past(self, round: int) -> bool:
        """Whether models of this round are of no use here any more."""

    # -- training ------------------------------------------------------------------------------------------------------

    def _take_on(self, node: Node, round: int, params: Tensor, position: int) -> None:
        """Train in this round, unless that was done, or the course is beyond it."""
        if round <= self._worked or self._is_past(round) or round >= self._stop:
            return
        self._worked = round
        self._hold(round, params)
        self._view.note(self._learner.seat, round)
        self._spawn(self._train(node, round, params, position))

    async def _train(self, node: Node, round: int, params: Tensor, position: int) -> None:
        node.emit(RoundStarted(round + 1, 1))
        fitted = await self._training.fit(node, self._learner, params, round)
        trained = params if fitted is None else fitted.params
        self._hold(min(round + 1, self._stop - 1), trained)  # what the next round can begin with, if it must
        await self._hand_over(node, round, position, (trained, None if fitted is None else number(fitted.loss)))

    async def _give(self, node: Node, seat: int, position: int, round: int, model: Trained) -> bool:
        """Whether a node has taken this model of a round, to average it at this position of the next."""
        if seat == self._learner.seat:
            await self._collect(node, round, position, seat, model)
            return True
        trained, loss = model
        combine = Combine(round, position, self._learner.tensors(trained), loss, self._view.seen)
        seconds = self._settings.wait_seconds + self._settings.patience_seconds
        return await self._answer(node, seat, combine, seconds) is not None

    # -- averaging -----------------------------------------------------------------------------------------------------

    async def _collect(self, node: Node, round: int, position: int, seat: int, model: Trained) -> None:
        """Put a model to the others of its round; until the mean is in other hands. It may be late for that."""
        if self._is_past(round) or self._round >= self._stop:
            return
        box = self._boxes.get(round)
        if box is None:
            box = self._boxes[round] = Box(position)
            self._spawn(self._aggregate(node, round, box))
        box.models[seat] = model
        node.stir()
        await box.over.wait()

    async def _aggregate(self, node: Node, round: int, box: Box) -> None:
        with node.waiting(f"models of round {round + 1}"), suppress(TimeoutError):
            async with asyncio.timeout(self._settings.wait_seconds):
                while len(box.models) < max(1, self._enough(len(self._givers(node, round, box.position)))):
                    await node.change()
        del self._boxes[round]
        if not self._is_past(round):
            for seat in self._givers(node, round, box.position):
                if seat not in box.models:
                    node.emit(UpdateMissing(round + 1, f"seat {seat}", "its model has not come in time", "late"))
            mean = _mean(node, round, box.models)
            params = self.params if mean is None else mean
            self._made = max(self._made, round + 1)
            self._hold(round + 1, params)
            metrics = await self._measure(params, round, box) if box.position == 0 else {}
            await self._commit(node, round + 1, params, metrics)
            if box.position == 0:
                node.emit(RoundEnded(round + 1, len(box.models), metrics))
            if round + 1 < self._stop:
                await self._go_on(node, round + 1, params, box.position)
            else:
                await self._finish(node, params)
        box.over.set()

    async def _measure(self, params: Tensor, round: int, box: Box) -> dict[str, float]:
        losses = [loss for _, loss in box.models.values() if loss is not None]
        distance = consensus_distance(params, [model for model, _ in box.models.values()])
        metrics = await self._settings.measure(self._learner, params, round, None, distance)
        return {**metrics, "train_loss": fmean(losses)} if losses else metrics

    async def _answer(self, node: Node, seat: int, request: Request[AnswerT], seconds: float) -> AnswerT | None:
        """What a peer answers, whose view comes with it; None if it does not."""
        peer = node.at(seat)
        if peer is not None:
            with suppress(*_UNANSWERED):
                async with asyncio.timeout(seconds):
                    answer = await peer.ask(request)
                self._learn(answer.seen)
                return answer
        return None

    async def _finish(self, node: Node, params: Tensor) -> None:
        """Give the last model to all."""
        finish = Finish(self._stop, self._learner.tensors(params))
        peers = [peer for seat in self._neighbors if (peer := node.at(seat)) is not None]
        async with node.ask_all(peers, finish) as replies:
            async for _ in replies:
                pass
        self._through.set()

    # -- where others are ----------------------------------------------------------------------------------------------

    def _order(self, node: Node, round: int) -> list[int]:
        """Those who are active and linked, and ourselves if we are active, in the order of a round."""
        own = self._learner.seat
        active = self._view.active(round, self._settings.within)
        return [*sampled((seat for seat in active if seat == own or node.at(seat) is not None), round)]

    @property
    def _known(self) -> int:
        """The highest round that is under way, as far as we know."""
        return max(self._made, min(self._view.round, self._stop - 1))

    def _hold(self, round: int, params: Tensor) -> None:
        """Have this model, with which this round begins, unless we have one of a later round."""
        if round >= self._round:
            self._round, self.params = round, params

    def _learn(self, seen: Seen) -> None:
        self._view.merge(seen, self._settings.rounds)

    async def _advertise(self, node: Node) -> None:
        linked = self._linked(node)[: _TOLD * self._settings.sample]
        await node.tell_all(linked, Advert(self._view.seen))

    def _linked(self, node: Node) -> list[Peer]:
        """Who is linked, in an order that is another for each node and round."""
        linked = [peer for seat in self._neighbors if (peer := node.at(seat)) is not None]
        return Random(seed_of(self._learner.seed, "peers", self._learner.seat, self._round)).sample(linked, len(linked))

    async def _watch(self, node: Node) -> None:
        """Until the course is over: see to it that it goes on."""
        with node.waiting("the end of the course"):
            while not self._through.is_set():
                before = self._known
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.patience_seconds):
                        await self._through.wait()
                if self._known == before and not self._tasks and not self._through.is_set():
                    await self._look_around(node)

    async def _look_around(self, node: Node) -> None:
        """Go on where somebody is ahead; if nobody is, and we are of the sample that is due, begin."""
        furthest, best = self._round, None
        for peer in self._linked(node)[: _TOLD * self._settings.sample]:
            found = await self._pull(peer, self._round)
            if found is not None and found.round > furthest:
                furthest, best = found.round, peer
        if best is not None:
            found = await self._pull(best, _ANY_ROUND)
            if found is not None and found.params is not None:
                self._follow(Lead(found.round, self._learner.vector(found.params)))
        gone_on, self._furthest = furthest > self._furthest, furthest
        if not gone_on:
            self._view.note(self._learner.seat, min(self._round, self._stop - 1))
            self._begin_if_due(node)

    async def _pull(self, peer: Peer, round: int) -> Pulled | None:
        """Where a peer is, with its model if it is beyond this round; None if it does not answer."""
        with suppress(*_UNANSWERED):
            async with asyncio.timeout(self._settings.patience_seconds):
                return await peer.ask(Pull(round))
        return None

    def _begin_if_due(self, node: Node) -> None:
        sample = self._order(node, self._round)[: self._settings.sample]
        if self._learner.seat in sample:
            self._take_on(node, self._round, self.params, sample.index(self._learner.seat))

    def _follow(self, lead: Lead) -> None:
        self._hold(lead.round, lead.params)
        if self._round >= self._stop:
            self._through.set()

    async def _commit(self, node: Node, rounds: int, params: Tensor, metrics: dict[str, float]) -> None:
        if rounds > self._committed:
            self._committed = rounds
            await self._durable.commit(node, rounds, {"params": params, "round": rounds}, metrics)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what others ask -----------------------------------------------------------------------------------------------

    @Combine.handler
    async def combine(self, ask: Combine, peer: Peer) -> Combined:
        seat = self._check(ask.round, peer)
        params = self._learner.vector(ask.params, finite=False)  # _mean looks
        if not 0 <= ask.position < self._settings.sample:
            raise RemoteProtocolError(f"position {ask.position} came, of a sample of {self._settings.sample}")
        await self._ready.wait()
        self._learn(ask.seen)
        await self._collect(peer.node, ask.round, ask.position, seat, (params, ask.loss))
        return Combined(self._view.seen)

    def _check(self, round: int, peer: Peer) -> int:
        if not 0 <= round < self._settings.rounds:
            raise RemoteProtocolError(f"a model of round {round + 1} came, of {self._settings.rounds}")
        return require_seat(peer, *self._neighbors)

    @Advert.handler
    def advert(self, message: Advert, peer: Peer) -> None:
        require_seat(peer, *self._neighbors)
        self._learn(message.seen)

    @Finish.handler
    async def finish(self, ask: Finish, peer: Peer) -> Finished:
        require_seat(peer, *self._neighbors)
        self._follow(Lead(self._stop, self._learner.vector(ask.params)))
        return Finished()

    @Release.handler
    async def release(self, ask: Release, peer: Peer) -> Released:
        """It is over for who asks; if not for us, we have missed how it ended."""
        seat = require_seat(peer, *self._neighbors)
        if not self._through.is_set():
            lead = await catch_up(peer.node, self._learner, [seat], self._round)
            if lead is not None:
                self._follow(lead)
        await self._through.wait()
        return Released()


def _mean(node: Node, round: int, models: dict[int, Trained]) -> Tensor | None:
    """Of the models that are finite, in the order of the seats; None, if there is none."""
    total, count = None, 0
    for seat, (model, _) in sorted(models.items()):
        if is_finite(model):
            total, count = model.clone() if total is None else total.add_(model), count + 1
        else:
            reason = "its model has NaN or infinite numbers"
            node.emit(UpdateMissing(round + 1, f"seat {seat}", reason, "unusable"))
    return None if total is None else total.div_(count)


def sampling(name: str, settings: type[SamplingSettings], role: type[Sampled]) -> Course:
    """The course of nodes that are sampled for each round."""

    def play(place: Place) -> tuple[object, ...]:
        neighbors = place.topology.union.neighbors(place.seat)
        return (role(place.learner, place.settings, neighbors, place.stop, place.journal),)

    return Course(name, settings, (role,), play, _everybody, "full", _needs, rotates=True)


def _everybody(topology: Topology) -> tuple[int, ...]:
    return tuple(range(topology.n))


def _needs(topology: Topology) -> str | None:
    full = all(topology.degree(seat) == topology.n - 1 for seat in range(topology.n)) and topology.is_symmetric
    return None if full else "every two nodes must be linked, as in the family full, because any may be of a sample"
