"""A seat of a course whose coordinator is elected: a client of whoever leads, and the one that leads if it must.

Each round's model is on the disks of a quorum before the round is committed, so that whoever leads next can go on from
it. See council.py for who that is, and why two coordinators cannot both commit.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from p2pfl.council.council import Council, Deposed
from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.durable import Durable, NotDurable
from p2pfl.courses.messages import Evaluate, Score, Train, Update
from p2pfl.courses.outbox import Outbox, score
from p2pfl.courses.rules import averaging
from p2pfl.errors import CourseError, JournalError, LinkClosed, RemoteError, RemoteProtocolError
from p2pfl.journal.certificate import Certificate
from p2pfl.journal.journal import Journal
from p2pfl.node.events import CourseEnded
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = ["Conclude", "Concluded", "Fetch", "Fetched", "Leads", "Member"]

_VOTE = "vote"
_HELD = "held-"
_MOST_MODELS = 4  # that of the last round, and what was proposed after it in several terms
_LINGER_SECONDS = 5.0
_RETRY_SECONDS = 1.0  # until who could not conclude is asked again: its disk may have been full
_OBEY_SECONDS = 5.0  # in which a member hears of a coordinator that asks it already


class Fetched(Message):
    """The answer to Fetch."""

    params: Tensors


class Fetch(Request[Fetched]):
    """Give me the model of that hash, which you propose or know to be committed."""

    hash: str


class Concluded(Message):
    """We know, too."""


class Conclude(Request[Concluded]):
    """The course is over: this is its last round."""

    certificate: Certificate


class Leads(Protocol):
    """A coordinator at work."""

    async def lead(self, node: Node) -> str:
        """Play the rounds that are left; why the course is over. Raises Deposed."""


class Member(ABC):
    """Votes, trains when the coordinator asks, and coordinates while it is elected to."""

    def __init__(self, place: Place, clients: Collection[int]) -> None:
        """`clients`: the seats that train."""
        self.params: Tensor = place.learner.model.initial
        self.rounds = 0  # that are committed, as far as our journal goes
        self.learner = place.learner
        self.clients = tuple(clients)
        self.durable = Durable(place.journal)
        self.settings = place.settings
        self._outbox = Outbox(self.learner, averaging(self.learner), self.durable)
        self._models: dict[str, Tensor] = {}  # by hash, the newest last
        self.voters = range(place.topology.n)
        self._over = asyncio.Event()
        self._reason = "the coordinator has ended it"
        self.run_name = self.durable.run or "simulated"
        vote = None if place.journal is None else self._restored(place.journal)
        self.council = Council(self.run_name, self.learner.seat, self.voters, self._keep_vote, self._hold, vote)

    def _restored(self, journal: Journal) -> RoleState | None:
        """What we have voted. Raises JournalError if that is damaged: who may have forgotten it must not vote again."""
        for name in journal.names():
            if name.startswith(_HELD) and (held := journal.kept(name)) is not None:
                self._models[name.removeprefix(_HELD)] = as_tensor(held["params"])
        try:
            return journal.intact(_VOTE)
        except JournalError as error:
            raise JournalError(
                f"what this node has voted in run {self.run_name} is damaged ({error}), so it must not vote in it "
                "again: take part in another run, or under another identity"
            ) from error

    @abstractmethod
    def leader(self, term: int) -> Leads:
        """The coordinator that this seat is in a term."""

    @property
    def trains(self) -> bool:
        """Whether this seat has examples."""
        return self.learner.seat in self.clients

    async def run(self, node: Node) -> None:
        node.agree(self.learner.schema)
        try:
            while not self._over.is_set():
                looked = node.changes
                await self._catch_up(node)
                if self.council.leads:
                    await self._lead(node)
                elif not self._over.is_set():
                    await node.change(looked)
        finally:
            self._outbox.close()
        node.emit(CourseEnded(self.rounds, self._reason))
        self.council.adjourn()

    def state(self) -> RoleState:
        return {"params": self.params, "rounds": self.rounds}

    def resume(self, state: RoleState) -> None:
        self.params, self.rounds = as_tensor(state["params"]), int(state["rounds"])

    async def _catch_up(self, node: Node) -> None:
        """Take over what is committed."""
        certificate = self.council.committed
        if certificate is None or certificate.round < self.rounds:
            return
        self.params, self.rounds = self._models[certificate.aggregate_hash], certificate.round + 1
        await self.durable.commit(node, self.rounds, self.state(), {}, certificate)
        if self.rounds == self.settings.rounds and not self.council.leads:
            self._reason = f"all {self.rounds} rounds are done"
            self._over.set()

    # -- as coordinator --------------------------------------------------------------------------------------------

    async def _lead(self, node: Node) -> None:
        leading = asyncio.create_task(self._play(node))
        deposed = asyncio.create_task(self.council.deposed(node))
        try:
            await asyncio.wait((leading, deposed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (leading, deposed):
                task.cancel()
            await asyncio.wait((leading, deposed))
        if leading.cancelled() or not (reason := leading.result()):
            return  # what we had not committed is void; we go on as a client
        await self._conclude(node)
        self._reason = reason
        self._over.set()

    async def _play(self, node: Node) -> str:
        """Lead until the course is over, and why that is; nothing: we do not lead any more."""
        term = await self.council.elected(node)
        try:
            if (pending := self.council.pending) is not None:
                await self.council.certify(node, replace(pending, term=term, signatures={}))
                await self._catch_up(node)
            return await self.leader(term).lead(node)
        except Deposed:
            return ""
        except JournalError as error:  # whoever leads has to remember what it proposes
            node.emit(NotDurable("a round that we lead", str(error)))
            self.council.resign()
            return ""

    async def _conclude(self, node: Node) -> None:
        """Tell all who are there, or come back in a while, that it is over. Most know, and have gone."""
        members = (node.members.at(seat) for seat in self.voters if seat != node.seat)
        voters = [node.peer(member.id) for member in members if member is not None]
        linger = max(_LINGER_SECONDS, self.settings.rejoin_seconds)
        certificate = self.council.committed
        assert certificate is not None, "a course has rounds"
        with suppress(TimeoutError):
            async with asyncio.timeout(linger):
                while voters:
                    async with node.ask_all(voters, Conclude(certificate), rejoin_seconds=linger) as replies:
                        async for _ in replies:
                            pass
                    voters = [peer for peer, error in replies.failed.items() if isinstance(error, RemoteError)]
                    await asyncio.sleep(_RETRY_SECONDS if voters else 0)

    async def certify(self, node: Node, certificate: Certificate, params: Tensor) -> Certificate:
        """Propose a round that we have led; it is committed once this returns. Raises Deposed."""
        self._remember(certificate.aggregate_hash, params)
        certified = await self.council.certify(node, certificate)
        self.params, self.rounds = params, certificate.round + 1
        return certified

    async def own_update(self, node: Node, ask: Train) -> Update:
        """What we train while we coordinate."""
        return await self._outbox.update(node, ask.round, ask.params)

    async def own_score(self, ask: Evaluate) -> Score:
        """How we find a model while we coordinate."""
        return await score(self.learner, self._outbox.local, self.learner.vector(ask.params), ask.round)

    # -- what the council keeps ------------------------------------------------------------------------------------

    async def _keep_vote(self, vote: Mapping[str, int | str]) -> None:
        if self.durable.journal is not None:
            await self.durable.journal.keep(_VOTE, vote)

    async def _hold(self, certificate: Certificate, peer: Peer | None) -> None:
        """See council.Hold."""
        wanted = certificate.aggregate_hash
        if wanted not in self._models:
            if peer is None:
                raise LinkClosed("nobody who has the model of that round is linked")
            fetched = await peer.ask(Fetch(wanted))
            params = self.learner.vector(fetched.params)
            if await self.learner.digest(params) != wanted:
                raise RemoteProtocolError("another model came than was asked for")
            self._remember(wanted, params)
        journal = self.durable.journal
        if journal is not None:
            await journal.keep(f"{_HELD}{wanted}", {"params": self._models[wanted]})
            for name in journal.names():
                if name.startswith(_HELD) and name.removeprefix(_HELD) not in self._models:
                    await journal.drop(name)

    def _remember(self, digest: str, params: Tensor) -> None:
        self._models.pop(digest, None)
        self._models[digest] = params
        for oldest in list(self._models)[:-_MOST_MODELS]:
            del self._models[oldest]

    # -- what others ask -------------------------------------------------------------------------------------------

    async def _obey(self, peer: Peer) -> None:
        """Raises RemoteProtocolError for who has no seat, CourseError for who does not coordinate."""
        seat = require_seat(peer, *self.voters)
        try:
            async with asyncio.timeout(_OBEY_SECONDS):
                while (await self.council.led_by(peer.node)).seat != seat:
                    await peer.node.change()
        except TimeoutError as error:
            raise CourseError(f"{peer.label} does not coordinate, as far as we know") from error

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        await self._obey(peer)
        if self.council.committed is not None and ask.round <= self.council.committed.round:
            raise CourseError(f"round {ask.round + 1} is committed")
        return await self._outbox.update(peer.node, ask.round, ask.params)

    @Evaluate.handler
    async def evaluate(self, ask: Evaluate, peer: Peer) -> Score:
        await self._obey(peer)
        return await score(self.learner, self._outbox.local, self.learner.vector(ask.params), ask.round)

    @Fetch.handler
    async def fetch(self, ask: Fetch, peer: Peer) -> Fetched:
        require_seat(peer, *self.voters)
        if ask.hash not in self._models:
            raise CourseError("there is no such model here any more")
        return Fetched(self.learner.tensors(self._models[ask.hash]))

    @Conclude.handler
    async def conclude(self, ask: Conclude, peer: Peer) -> Concluded:
        """Who leads may end a course early; that all rounds are done is true whoever says it."""
        require_seat(peer, *self.voters)
        if ask.certificate.round + 1 < self.settings.rounds:
            await self._obey(peer)
        await self.council.learn(ask.certificate, peer)
        while self.rounds <= ask.certificate.round:
            await peer.node.change()
        self._over.set()
        peer.node.stir()
        return Concluded()
