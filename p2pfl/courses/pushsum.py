"""Stochastic gradient push: decentralized SGD on one-way and changing graphs, and over links that lose messages.

M. Assran, N. Loizou, N. Ballas, M. Rabbat: "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019,
https://arxiv.org/abs/1811.10792; upon D. Kempe, A. Dobra, J. Gehrke: "Gossip-Based Computation of Aggregate
Information", FOCS 2003.

Each node holds x and a weight w, and trains and evaluates z = x / w. In a round it adds what training made of z to x,
divides both into equal shares for itself and all whom it sends to, and adds up what comes. Only the sender needs its
out-degree, and all z approach the mean of all nodes on every strongly connected graph.

Deviations: several local steps to a round, as is usual. A share is asked, not told: the sender offers it until it is
acknowledged or refused, and takes it back if it was refused; the receiver knows a share that it has by sender and round
(see `mass`). So mass is never made or lost while nodes live. Who is not linked gets no share: its part stays with the
sender. A partition goes on with the mass that is on either side, and z of both sides merge by mass. A node that is late
without a state has w = 0 and z of a neighbour, and trains once it has been given mass. `pace = "free"`: nodes wait for
nobody, and shares count when they come. Who is faster than its neighbours gives more than it gets there, and its w is
small; it adds min(1, w) times its step to x, so that z never moves by more than was learned.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.gossip import (
    Gossiping,
    GossipSettings,
    Lead,
    Standing,
    begin,
    catch_up,
    consensus_distance,
    links,
    neighborhood,
    part,
)
from p2pfl.courses.learner import Learner
from p2pfl.courses.mass import Purse, Share
from p2pfl.errors import ConfigError, LinkError, RemoteError, RemoteProtocolError
from p2pfl.journal.journal import Journal
from p2pfl.learn.train import FitResult
from p2pfl.node.connection import Connection
from p2pfl.node.events import Cause, CourseEnded, Event, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Schedule
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = ["PUSHSUM", "Give", "MassLost", "Outcome", "Pusher", "PushsumSettings", "Receipt"]

_PURSE = "purse"
_LEAST_WEIGHT = 1e-3  # with less, x / w says nothing, and a step would move it by a multiple of itself
_ROUNDS_KEPT = 8  # how far ahead a share may be that is kept for its round; others count at once, late for nobody
_HAND_OVER_SECONDS = 10.0  # in which a node that leaves is rid of its mass


@dataclass(frozen=True, slots=True)
class PushsumSettings(GossipSettings):
    """The table [course] of a course file."""

    name: str = "pushsum"
    pace: str = "rounds"
    """`rounds`: a round waits for the shares of all who send to us; `free`: nobody waits for anybody."""
    deadline_seconds: float = 0.0
    """With `rounds`: waits no longer than this after training; 0: for every such neighbour that is linked."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        if self.pace not in ("rounds", "free"):
            raise ConfigError(f"course.pace is {self.pace!r}; it must be one of rounds, free")
        if self.deadline_seconds < 0:
            raise ConfigError(f"course.deadline_seconds is {self.deadline_seconds}; it must not be negative")


class Outcome(StrEnum):
    """What became of a share."""

    TAKEN = "taken"
    AGAIN = "again"  # it had been taken before
    REFUSED = "refused"  # our course is over; it is the sender's


class Receipt(Message):
    """The answer to Give."""

    outcome: Outcome


class Give(Request[Receipt]):
    """Take this share of my mass, which I cut off in this round (from 0): a part of x, and of w.

    One that was in doubt is offered again later; `now` is the round that I am in.
    """

    round: int
    now: int
    weight: float
    params: Tensors

    def __post_init__(self) -> None:
        if not 0 <= self.round <= self.now or not 0 < self.weight < math.inf:
            raise ValueError(f"round {self.round} or weight {self.weight} is none that a share can have")


@dataclass(frozen=True, slots=True)
class MassLost(Event):
    """Mass that is gone for good, as a weight: n nodes begin with n."""

    round: int
    weight: float
    reason: str

    def __str__(self) -> str:
        return f"round {self.round}: a mass of {self.weight:.3f} is lost: {self.reason}"


class Pusher(Gossiping):
    """One node of the graph. It is through when it gives nothing more, and takes nothing."""

    _settings: PushsumSettings

    def __init__(
        self,
        learner: Learner,
        settings: PushsumSettings,
        schedule: Schedule,
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`stop`: the round, from 0, before which to pause."""
        super().__init__(learner, settings, neighborhood(schedule, learner.seat), stop, journal)
        self.purse = Purse(self.params)  # params are x / w
        self._schedule = schedule
        self._resumed = False
        self._heard: dict[int, Share] = {}  # the last of each sender since our last round
        self._weights: dict[int, float] = {}  # of the last share of each sender, who kept as much
        self._links: dict[int, Connection] = {}  # receiver -> the link it had when we cut off the shares of this round
        self._couriers: dict[int, asyncio.Task[None]] = {}  # by receiver; one that has an open share
        self._closed: set[int] = set()  # receivers that refuse our shares: their course is over
        self._leaving = False
        self._node: Node | None = None
        if journal is not None and journal.last() is None and (kept := journal.kept(_PURSE)) is not None:
            self.resume(kept)

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, node: Node) -> None:
        self._node = node
        node.agree(self._learner.schema)
        patience = self._settings.rejoin_seconds
        lead = await begin(node, self._learner, self._neighbors, self._round, patience)
        if lead is not None:
            self._join(node, lead)
        async with asyncio.TaskGroup() as group:
            for receiver in self.purse.outgoing:
                self._send(node, group, receiver)  # what was in doubt when we stopped
            while self._round < self._stop and not self._leaving:
                await self._play(node, group)
            await (self._hand_over(node, group) if self._leaving else self._part(node))
            for courier in self._couriers.values():
                courier.cancel()
        self._end(node)

    def _end(self, node: Node) -> None:
        if not self._leaving:
            super()._end(node)
            return
        self._training.check()
        node.emit(CourseEnded(self._round, "we leave"))

    def leave(self) -> None:
        """After this round, hand all mass to a neighbour, and be through."""
        self._leaving = True

    def state(self) -> RoleState:
        return {**self.purse.state(), "params": self.params, "round": self._round}

    def resume(self, state: RoleState) -> None:
        kept = None if self._durable.journal is None else self._durable.journal.kept(_PURSE)
        if kept is not None and int(kept["round"]) >= int(state["round"]):
            state = kept
        self.purse, self.params = Purse.restored(state), as_tensor(state["params"])
        self._round, self._resumed = int(state["round"]), True

    # -- a round ---------------------------------------------------------------------------------------------------

    async def _play(self, node: Node, group: asyncio.TaskGroup) -> None:
        round, seat = self._round, self._learner.seat
        node.emit(RoundStarted(round + 1, 1))
        fitted = await self._train(node, round)
        graph = self._schedule.at(round)
        await self._give(node, group, round, graph.neighbors(seat))
        if self._settings.pace == "rounds":
            await self._gather(node, round, graph.senders(seat))
        heard, distance = self._merge(round)
        self._round = round + 1
        metrics = await self._settings.measure(self._learner, self.params, round, fitted, distance)
        metrics |= {"mass": self.purse.weight}
        await self._durable.commit(node, self._round, self.state(), metrics)
        node.emit(RoundEnded(round + 1, heard + 1, metrics))
        audible = [other for other in self._schedule.union.senders(seat) if node.hears(other)]
        if self._settings.pace == "rounds" and self._pace.is_beyond(audible, self._round):
            lead = await catch_up(node, self._learner, audible, self._round)
            if lead is not None:
                self._round = lead.round  # our own mass stays, and with it what it says of the model

    async def _train(self, node: Node, round: int) -> FitResult | None:
        if self.purse.weight < _LEAST_WEIGHT:
            return None
        before = self.params
        fitted = await self._training.fit(node, self._learner, before, round)
        if fitted is None:
            return None
        step = fitted.params - before
        self.purse.move(step if self._settings.pace == "rounds" else step * min(1.0, self.purse.weight))
        return fitted

    async def _give(self, node: Node, group: asyncio.TaskGroup, round: int, receivers: Collection[int]) -> None:
        self._links = links(node, self._schedule.union.neighbors(self._learner.seat))
        linked = [other for other in receivers if other in self._links and self._is_open(other)]
        if self.purse.weight < _LEAST_WEIGHT:
            await self._stand(node, round, linked)  # nobody is to wait for a share of ours
            return
        await self._stand(node, round, [other for other in receivers if other in self._links and other not in linked])
        self.purse.split(round, linked)
        for receiver in linked:
            self._send(node, group, receiver)

    def _is_open(self, receiver: int) -> bool:
        """Whether to cut off a share for it: not while it leaves one unanswered, unless we wait for it anyway."""
        waits = self._settings.pace == "rounds" and not self._settings.deadline_seconds
        return receiver not in self._closed and (waits or receiver not in self.purse.outgoing)

    async def _stand(self, node: Node, round: int, receivers: Collection[int]) -> None:
        await node.tell_all([peer for other in receivers if (peer := node.at(other))], Standing(round))

    def _send(self, node: Node, group: asyncio.TaskGroup, receiver: int) -> None:
        if receiver not in self._couriers or self._couriers[receiver].done():
            self._couriers[receiver] = group.create_task(self._deliver(node, receiver))

    async def _deliver(self, node: Node, receiver: int) -> None:
        """Offer our shares to a receiver, one after the other, until each has an answer, over as many links as need be.

        A share that is known there at our first offer was given by an earlier life of this seat. If we go on from the
        state of that life, it is this very share. If not, it is another one, and ours was not taken.
        """
        offered: Share | None = None
        while (share := self.purse.due(receiver)) is not None:
            peer = node.at(receiver)
            if peer is None:
                await node.change()
                continue
            known, offered = share is offered or self._resumed, share
            try:
                ask = Give(share.round, self._round, share.weight, self._learner.tensors(share.value))
                outcome = (await peer.ask(ask)).outcome
            except LinkError:
                continue  # it may have it, or not: ask again
            except RemoteError:
                outcome = Outcome.REFUSED
            if outcome is Outcome.TAKEN or (outcome is Outcome.AGAIN and known):
                self.purse.acknowledge(receiver)
            else:
                self.purse.take_back(receiver)
                if outcome is Outcome.REFUSED:
                    self._closed.add(receiver)
            node.stir()

    async def _gather(self, node: Node, round: int, senders: Collection[int]) -> None:
        """Wait until those who can be heard have given us their shares, and have taken ours."""
        with node.waiting(f"the shares of round {round + 1}"), suppress(TimeoutError):
            async with asyncio.timeout(self._settings.deadline_seconds or None):
                looked = node.changes
                while self._owes(node) or any(self._lacks(node, other, round) for other in senders):
                    await node.change(looked)
                    looked = node.changes
                    before, self._links = self._links, links(node, self._schedule.union.neighbors(self._learner.seat))
                    fresh = [other for other in self._links if self._links[other] is not before.get(other)]
                    await self._stand(node, round, fresh)
        for other in senders:
            if self.purse.seen.get(other, -1) < round:
                held = f", with a mass of about {self._weights[other]:.3f}" if other in self._weights else ""
                cause: Cause = "late" if node.hears(other) else "lost"
                node.emit(UpdateMissing(round + 1, f"seat {other}", f"it is not linked, or late{held}", cause))

    def _owes(self, node: Node) -> bool:
        """Whether some who can be heard have not answered."""
        return any(node.hears(receiver) for receiver in self.purse.outgoing)

    def _lacks(self, node: Node, sender: int, round: int) -> bool:
        return node.hears(sender) and not self._pace.reached(sender, round)

    def _merge(self, round: int) -> tuple[int, float | None]:
        """Add what has come for this round to x; how many were heard, and how far their z were from ours."""
        due = self._settings.is_due(self._learner.seat, round) and self.purse.weight >= _LEAST_WEIGHT
        own = self.purse.value / self.purse.weight if due else None
        heard = self.purse.merge(round) if self._settings.pace == "rounds" else self._heard
        self._heard = {}
        self._estimate()
        if own is None:
            return len(heard), None
        return len(heard), consensus_distance(own, [share.value / share.weight for share in heard.values()])

    def _estimate(self) -> None:
        if self.purse.weight >= _LEAST_WEIGHT:
            self.params = self.purse.value / self.purse.weight

    # -- coming and going ------------------------------------------------------------------------------------------

    def _join(self, node: Node, lead: Lead) -> None:
        """Go on where a neighbour is: with our own mass if we have a state, else with none, and its model."""
        self._round = lead.round
        if not self._resumed:
            born = self.purse.ledger.born
            self.purse.forfeit(born, self.params * born)  # what we have been given meanwhile stays
            self.params = lead.params
            self._estimate()
            node.emit(MassLost(lead.round + 1, born, "we come late, and without the state of this seat"))

    async def _part(self, node: Node) -> None:
        """Be rid of all shares; then stay to answer until every neighbour is through, or gone."""
        await self._settled(node)
        self.purse.merge()
        self._estimate()
        self._through.set()
        standing = Standing(self._settings.rounds)
        await part(node, self._neighbors, self._settings.rejoin_seconds, standing=standing)

    async def _settled(self, node: Node) -> None:
        with node.waiting("the receipts for our shares"):
            while self._owes(node):
                await node.change()

    async def _hand_over(self, node: Node, group: asyncio.TaskGroup) -> None:
        """Give everything to the first neighbour that takes it. What others give us from now on is theirs again."""
        self._through.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_HAND_OVER_SECONDS):
                await self._settled(node)
                self.purse.merge()
                for receiver in links(node, self._schedule.union.neighbors(self._learner.seat)):
                    if not self.purse.weight:
                        break
                    self.purse.hand_over(self._round, receiver)
                    self._send(node, group, receiver)
                    await self._settled(node)
        if self.purse.outgoing:
            why = "receivers were lost before they could say that they have it, and may have it"
            node.emit(MassLost(self._round, self.purse.under_way, why))
        if self.purse.weight:
            node.emit(MassLost(self._round, self.purse.weight, "we leave, and no neighbour took it"))
            self.purse.forfeit(self.purse.weight, self.purse.value)

    # -- handlers --------------------------------------------------------------------------------------------------

    @Give.handler
    async def give(self, ask: Give, peer: Peer) -> Receipt:
        sender = require_seat(peer, *self._schedule.union.senders(self._learner.seat))
        if ask.round >= self._settings.rounds:
            raise RemoteProtocolError(f"a share of round {ask.round + 1} came, of {self._settings.rounds}")
        share = Share(ask.round, ask.weight, self._learner.vector(ask.params))
        self._pace.note(sender, max(ask.round, ask.now - 1))  # nothing of an earlier round is to come
        self._weights[sender] = ask.weight
        self._closed.discard(sender)
        if self._through.is_set():
            known = ask.round <= self.purse.seen.get(sender, -1)
            return Receipt(Outcome.AGAIN if known else Outcome.REFUSED)
        taken = self.purse.take(sender, share)
        if taken and (self._settings.pace == "free" or ask.round > self._round + _ROUNDS_KEPT):
            self.purse.merge()
            self._heard[sender] = share
        if self._durable.journal is not None:  # or the giver would be rid of what we may forget
            await self._durable.keep(peer.node, _PURSE, self.state())
        self._wake()
        return Receipt(Outcome.TAKEN if taken else Outcome.AGAIN)

    @Standing.handler
    def standing(self, message: Standing, peer: Peer) -> None:
        self._pace.note(require_seat(peer, *self._neighbors), message.round)
        self._wake()

    def _wake(self) -> None:
        if self._node is not None:
            self._node.stir()


def _play(place: Place) -> tuple[object, ...]:
    return (Pusher(place.learner, place.settings, place.topology, place.stop, place.journal),)


def _needs(topology: Topology) -> str | None:
    return None if topology.is_connected else "the graph must be connected"


PUSHSUM = Course(
    "pushsum", PushsumSettings, (Pusher,), _play, lambda topology: tuple(range(topology.n)), "ring", _needs
)
