"""Decentralized SGD: every node trains, gives its model to its neighbours, and mixes what it gets.

X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu: "Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent", NeurIPS 2017,
https://arxiv.org/abs/1705.09056.

Adapt-then-combine with local epochs, as is usual in decentralized learning: x_i <- sum_j w_ij y_j, where y_j is what
local training made of x_j. `order = "combine"` is the paper's combine-then-adapt: x_i <- sum_j w_ij x_j + (y_i - x_i).
What does not arrive leaves its weight with the receiver, or with all that arrives, as `missing` says, so that every row
of the mixing matrix still sums to one. What was lost with a link is said again over the next. Who is rounds behind all
its neighbours goes on in the round, and with the model, of one of them. With `signed`, nobody gives different models in
one round to different neighbours for long: see `equivocation`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.decor import GOSSIPING, Pairing, noisy
from p2pfl.courses.diagnosis import diagnosed
from p2pfl.courses.gossip import (
    Gossiping,
    GossipSettings,
    Lead,
    Standing,
    begin,
    catch_up,
    links,
    neighborhood,
    part,
)
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.private import keeping
from p2pfl.courses.steps import Adapt, Combine, Steps
from p2pfl.courses.watch import Watch
from p2pfl.errors import ConfigError, RemoteProtocolError, require
from p2pfl.journal.journal import Journal
from p2pfl.learn.params import is_finite
from p2pfl.node.connection import Connection
from p2pfl.node.events import Cause, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Schedule
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors

__all__ = [
    "DPSGD",
    "DpsgdSettings",
    "Mixer",
    "MixingSettings",
    "Model",
    "SignedModel",
    "connected",
    "mixing",
    "symmetric",
]

_ROUNDS_AHEAD = 64  # how far a neighbour may be ahead before its models are not kept


@dataclass(frozen=True, slots=True)
class MixingSettings(GossipSettings):
    """What every algorithm has whose nodes train and mix in rounds."""

    deadline_seconds: float = 0.0
    """After training, a round waits so long, and mixes what has come; 0: it waits for all who are linked."""
    private: tuple[str, ...] = ()
    """Tensors of the model that never leave a node, as patterns of their names, such as `["head.*"]`. Each node's model
    is then measured on its own examples, too: on those of partition.holdout, if there are any."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        if self.deadline_seconds < 0:
            raise ConfigError(f"course.deadline_seconds is {self.deadline_seconds}; it must not be negative")

    @property
    def is_personal(self) -> bool:
        return bool(self.private)

    @property
    def is_diagnosed(self) -> bool:
        """Whether it is told how alike the vectors are that a node mixes: where these are models."""
        return False


@dataclass(frozen=True, slots=True)
class DpsgdSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "dpsgd"
    order: str = "adapt"
    """`adapt`: train, then mix what all have trained; `combine`: mix the models that training began with."""
    missing: str = "self"
    """Who gets the weight of a model that does not come: `self`, the receiver's own model, which keeps the mean of all
    wherever both ends of a link miss each other; `renormalise`, all that it has. On the family moshpit the latter is
    Moshpit SGD: of each group those average who are there, which keeps the mean where they agree on who is."""
    signed: bool = False
    """Whether models are signed, and nodes compare who signed what: who gives two models in one round is banned for a
    day. In each round 400 bytes of each node reach every other: it is meant for up to some hundreds of nodes."""
    diagnose: bool = False
    """Tell, where a node evaluates, how alike the models are that it mixes, as differences to its own of before:
    dissimilarity, gradient diversity, norm, distance to their mean."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        whole = not (self.diagnose and self.private)
        require(whole, "course.diagnose compares whole models, and course.private keeps parts; leave one of them out")
        if self.order not in ("adapt", "combine"):
            raise ConfigError(f"course.order is {self.order!r}; it must be one of adapt, combine")
        if self.missing not in ("self", "renormalise"):
            raise ConfigError(f"course.missing is {self.missing!r}; it must be one of self, renormalise")

    @property
    def is_diagnosed(self) -> bool:
        return self.diagnose


class Model(Message):
    """The sender's model in this round, and what else its algorithm gives. Rounds count from 0."""

    round: int
    params: Tensors


class SignedModel(Model):
    """A model with the sender's signature on what it states of it; see `equivocation.Statement`."""

    signature: str


class Mixer(Gossiping):
    """One node of the graph."""

    _settings: MixingSettings

    def __init__(
        self,
        learner: Learner,
        settings: MixingSettings,
        schedule: Schedule,
        stop: int | None = None,
        journal: Journal | None = None,
        watch: Watch | None = None,
        steps: Steps | None = None,
    ) -> None:
        """`stop`: the round, from 0, before which to pause. `watch`: the role that signs and checks models, if any.
        `steps`: what is given and what is made of it; None: the models that all have trained.
        """
        super().__init__(learner, settings, neighborhood(schedule, learner.seat), stop, journal)
        self._schedule = schedule
        self._watch = watch
        self._steps = steps or Adapt(learner.parts)
        self._row: tuple[Topology | None, dict[int, float]] = (None, {})  # of the last graph, which is often the next
        self._met: dict[int, Connection] = {}  # links to those whom we gave nothing in the last round
        self._awaited: set[int] = set()  # whose models the present round still waits for
        self._node: Node | None = None
        self._mailbox: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)  # round -> seat -> model
        self._checking: list[tuple[int, int]] = []  # rounds and seats of models that have come, and are hashed

    @property
    def parts(self) -> Parts:
        """What is given to neighbours."""
        return self._steps.parts

    async def run(self, node: Node) -> None:
        self._node = node
        node.agree(self._learner.schema, *self._steps.parts.schemas)
        patience = self._settings.rejoin_seconds
        lead = await begin(node, self._learner, self._neighbors, self._round, patience)
        while True:
            if lead is not None:
                self._follow(lead)
            if self._round >= self._stop:
                break
            await self._play(node, self._round)
            lead = await self._behind(node)
        self._through.set()
        patience, standing = self._settings.rejoin_seconds, Standing(self._settings.rounds)
        await part(node, self._neighbors, patience, all_of_them=False, standing=standing)
        self._end(node)

    def state(self) -> RoleState:
        return {"params": self.params, "round": self._round, **self._steps.state()}

    def resume(self, state: RoleState) -> None:
        self.params, self._round = as_tensor(state["params"]), int(state["round"])
        self._steps.resume(state)

    def _public(self) -> Tensor:
        return self._steps.public(self.params)

    async def _play(self, node: Node, round: int) -> None:
        node.emit(RoundStarted(round + 1, 1))
        steps, before = self._steps, self.params
        fitted = await self._training.attempt(node, round, steps.fit(self._learner, before, round))
        trained = before if fitted is None else fitted.params
        shared = steps.give(before, trained)
        heard = await self._exchange(node, round, shared)
        self.params = steps.take(before, trained, self._mix(node, round, shared, heard), heard)
        due = self._settings.is_due(self._learner.seat, round)
        distance = steps.distance(shared, heard) if due else None
        metrics = await self._settings.measure(self._learner, self.params, round, fitted, distance)
        if due and self._settings.is_diagnosed:
            metrics |= diagnosed(before, (shared, *heard.values()))
        await self._durable.commit(node, self._round, self.state(), metrics)
        node.emit(RoundEnded(round + 1, len(heard) + 1, metrics))

    async def _behind(self, node: Node) -> Lead | None:
        """Where a neighbour is, if all that we can hear are rounds ahead: we were away, and they do not wait for us."""
        if self._round >= self._stop or not self._pace.anybody_beyond(self._round):
            return None  # as nearly always: then nobody's link is looked at
        audible = [other for other in self._schedule.union.senders(self._learner.seat) if node.hears(other)]
        if not self._pace.is_beyond(audible, self._round):
            return None
        return await catch_up(node, self._learner, audible, self._round)

    def _follow(self, lead: Lead) -> None:
        self._round, self.params = lead.round, self._steps.adopt(self.params, lead.params)
        self._steps.restart()
        for old in [round for round in self._mailbox if round < self._round]:
            del self._mailbox[old]

    def _mix(self, node: Node, round: int, shared: Tensor, heard: dict[int, Tensor]) -> Tensor:
        """sum_j w_ij x_j in the order of the seats; models that are not finite are left out of it, and reported."""
        row = self._steps.received(self._weights(self._schedule.at(round)), heard)
        mixed = shared * self._steps.own(row)
        for other in sorted(row):
            mixed.add_(heard[other], alpha=row[other])
        if is_finite(mixed):  # one look at the sum instead of one at each model: NaN and infinity stay visible in it
            return mixed
        sound = {other: model for other, model in heard.items() if is_finite(model)}
        if len(sound) == len(heard):
            return mixed  # it is our own model that has diverged
        for other in sorted(set(heard) - set(sound)):
            reason = "its model has NaN or infinite numbers"
            node.emit(UpdateMissing(round + 1, f"seat {other}", reason, "unusable"))
        return self._mix(node, round, shared, sound)

    def _weights(self, graph: Topology) -> dict[int, float]:
        if graph is not self._row[0]:
            self._row = graph, self._steps.row(graph, self._learner.seat)
        return self._row[1]

    async def _exchange(self, node: Node, round: int, shared: Tensor) -> dict[int, Tensor]:
        """Give our model to this round's neighbours; what has come from them, by seat."""
        graph, box = self._schedule.at(round), self._mailbox[round]
        ours = await self._ours(node, round, shared)
        with node.waiting(f"the models of round {round + 1}"), suppress(TimeoutError):
            async with asyncio.timeout(self._settings.deadline_seconds or None):
                await self._hear(node, graph, box, ours)
        del self._mailbox[round]
        self._round = round + 1
        convicts = () if self._watch is None else self._watch.convicts
        for seat in graph.senders(self._learner.seat):
            if seat in convicts:
                box.pop(seat, None)
                node.emit(UpdateMissing(round + 1, f"seat {seat}", "it has given two models in one round", "unusable"))
            elif seat not in box:
                cause: Cause = "late" if node.hears(seat) else "lost"
                node.emit(UpdateMissing(round + 1, f"seat {seat}", "it is not linked, or late", cause))
        return box

    async def _ours(self, node: Node, round: int, shared: Tensor) -> Model | Standing:
        """What we give in this round: our model, unless we must not sign it."""
        params = self._steps.parts.tensors(shared)
        if self._watch is None:
            return Model(round, params)
        signature = await self._watch.sign(node, round, params)
        return Standing(round) if signature is None else SignedModel(round, params, signature)

    async def _hear(self, node: Node, graph: Topology, box: dict[int, Tensor], ours: Model | Standing) -> None:
        """Tell ours, over every new link again, until all senders are in the box, or gone, or in a later round."""
        seat = self._learner.seat
        others = set(self._schedule.union.neighbors(seat)).difference(graph.neighbors(seat))
        told: dict[int, Connection] = {}
        while True:
            looked = node.changes
            if others:
                await self._say_where_we_are(node, others, ours.round)
            before, told = told, links(node, graph.neighbors(seat))
            fresh = [link.peer for other, link in told.items() if link is not before.get(other)]
            if self._steps.apart:
                await self._tell_apart(node, fresh, ours)
            else:
                await node.tell_all(fresh, ours)
            self._awaited = {
                other
                for other in graph.senders(seat)
                if other not in box and self._is_due(other, ours.round, audible=other in told or node.hears(other))
            }
            if not self._awaited:
                return
            await node.change(looked)  # somebody may have gone, or come, while we told others

    async def _say_where_we_are(self, node: Node, others: Iterable[int], round: int) -> None:
        """Over every new link to those whom we give nothing in this round: they may wait for us in an earlier one."""
        before, self._met = self._met, links(node, others) if round else {}
        fresh = [link.peer for other, link in self._met.items() if link is not before.get(other)]
        await node.tell_all(fresh, Standing(round - 1))

    async def _tell_apart(self, node: Node, peers: Iterable[Peer], ours: Model | Standing) -> None:
        """To each its own; a slow one holds nobody up."""
        assert isinstance(ours, Model), "nobody watches where neighbours are given different vectors"
        parts = self._steps.parts
        shared = parts.vector(ours.params, finite=False)
        async with asyncio.TaskGroup() as group:
            for peer in peers:
                assert peer.seat is not None, "neighbours have seats"
                theirs = Model(ours.round, parts.tensors(self._steps.to(shared, peer.seat)))
                group.create_task(node.tell_all([peer], theirs))

    def _is_due(self, seat: int, round: int, *, audible: bool) -> bool:
        return (audible and not self._pace.reached(seat, round)) or (round, seat) in self._checking

    @Model.handler
    def model(self, message: Model, peer: Peer) -> None:
        if self._watch is not None:
            raise RemoteProtocolError("a model that is not signed came, and course.signed is true")
        if message.round < self._round:
            return  # it missed the deadline
        seat = self._sender(message, peer)
        self._pace.note(seat, message.round)
        self._take(message.round, seat, self._read(message))

    @SignedModel.handler
    async def signed_model(self, message: SignedModel, peer: Peer) -> None:
        """One that missed the deadline is of no use, and still tells what its sender stated."""
        if self._watch is None:
            raise RemoteProtocolError("a signed model came, and course.signed is false")
        seat = self._sender(message, peer)
        vector = self._read(message)
        if message.round >= self._round:
            self._pace.note(seat, message.round)
        self._checking.append((message.round, seat))
        try:
            await self._watch.check(peer, message.round, message.params, message.signature)
        except RemoteProtocolError:
            peer.node.stir()  # it is waited for in vain
            raise
        finally:
            self._checking.remove((message.round, seat))
        if message.round >= self._round:
            self._take(message.round, seat, vector)

    def _sender(self, message: Model, peer: Peer) -> int:
        """The seat of who gives this model. Raises RemoteProtocolError if it is not to."""
        if not 0 <= message.round < self._settings.rounds:
            raise RemoteProtocolError(f"a model of round {message.round + 1} came, of {self._settings.rounds}")
        return require_seat(peer, *self._schedule.at(message.round).senders(self._learner.seat))

    def _read(self, message: Model) -> Tensor:
        """What was given. Raises RemoteProtocolError for what an honest neighbour does not give."""
        vector = self._steps.parts.vector(message.params, finite=False)
        self._steps.check(vector)
        return vector

    def _take(self, round: int, seat: int, vector: Tensor) -> None:
        """Keep a model, which need not be finite: `_mix` looks."""
        if round < self._round + _ROUNDS_AHEAD:
            self._mailbox[round][seat] = vector
        if seat in self._awaited and self._node is not None:
            self._awaited.discard(seat)
            if not self._awaited:  # to wake it for every model would cost as much as the mixing
                self._node.stir()

    @Standing.handler
    def standing(self, message: Standing, peer: Peer) -> None:
        self._pace.note(require_seat(peer, *self._neighbors), message.round)
        peer.node.stir()


def _play(place: Place) -> tuple[object, ...]:
    pairing: Pairing | None = None
    kind = Adapt if place.settings.order == "adapt" else Combine
    steps: Steps = kind(place.learner.parts, place.settings.missing)
    if not place.privacy.plain:
        steps, pairing = noisy(place)
    neighbors = neighborhood(place.topology, place.seat)
    watch = Watch(place.seat, neighbors, place.journal) if place.settings.signed else None
    kept = keeping(steps, place)
    mixer = Mixer(place.learner, place.settings, place.topology, place.stop, place.journal, watch, kept)
    return tuple(role for role in (mixer, watch, pairing) if role is not None)


def connected(topology: Topology) -> str | None:
    """Why nodes that mix cannot agree on this graph, or None."""
    return None if topology.is_connected else "the graph must be connected"


def symmetric(topology: Topology) -> str | None:
    """Why the mean of all is not kept on this graph, or None."""
    return connected(topology) if topology.is_symmetric else "links must go both ways, so that the mean of all is kept"


def mixing(
    name: str,
    settings: type[MixingSettings],
    steps: Callable[[Place], Steps],
    needs: Callable[[Topology], str | None] = connected,
    family: str = "ring",
    *,
    compresses: bool = False,
) -> Course:
    """The course of nodes that train and mix in rounds, and go by `steps(place)`.

    `steps` raises ConfigError where settings and graph do not go together.
    """

    def play(place: Place) -> tuple[object, ...]:
        kept = keeping(steps(place), place)
        return (Mixer(place.learner, place.settings, place.topology, place.stop, place.journal, steps=kept),)

    return Course(name, settings, (Mixer,), play, _everybody, family, needs, compresses=compresses)


def _everybody(topology: Topology) -> Sequence[int]:
    """All seats."""
    return range(topology.n)


DPSGD = Course("dpsgd", DpsgdSettings, (Mixer, Watch, Pairing), _play, _everybody, "ring", connected, privacy=GOSSIPING)
