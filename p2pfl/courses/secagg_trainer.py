"""A client that gives its update to a secure aggregation, and to nobody in any other way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Evaluate, Score, Train, Update
from p2pfl.courses.secagg import (
    AggregationLeft,
    Confirm,
    Confirmation,
    Enlist,
    Given,
    Keys,
    Mask,
    Masked,
    Reveal,
    Secrecy,
    Seeds,
    Share,
    Shares,
    digest,
    signer_of,
    unhurried,
)  # fmt: skip
from p2pfl.courses.trainer import Trainer
from p2pfl.crypto.signing import Signer
from p2pfl.errors import AggregationAborted, JournalError
from p2pfl.journal.journal import Journal
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.privacy.encoding import Words
from p2pfl.privacy.secagg import Advert, Session
from p2pfl.privacy.secagg_client import Client, Floors
from p2pfl.privacy.secagg_masks import masking

__all__ = ["PledgedTrainer", "SecretTrainer"]

_NAME = "secagg"  # under which a journal has what must not be forgotten
_MOST_REMEMBERED = 1000  # updates that were given
_HOUR = 3600.0


class Takes(Protocol):
    """A client's side of a session, which begins with its advert."""

    session: Session
    advert: Advert

    def __init__(self, session: Session, signer: Signer, floors: Floors) -> None: ...

    def wipe(self) -> None:
        """End the session."""


ClientT = TypeVar("ClientT", bound=Takes)


@dataclass(slots=True, eq=False)
class Pledge(Generic[ClientT]):
    """What is given to one session."""

    client: ClientT
    given: Given
    digest: str
    round: int


class PledgedTrainer(Trainer, Generic[ClientT]):
    """A client that trusts its server with the model alone.

    It takes part in one session at a time, and never gives an update to a second one: two sums over sets that differ
    in one client tell its update. What it has given, and what it has revealed, is written down before it leaves. The
    stages behind the first are those of a kind of session.
    """

    client_type: type[ClientT]
    """Its side of a session."""

    def __init__(
        self, learner: Learner, server: int, journal: Journal | None, secrecy: Secrecy, floors: Floors | None = None
    ) -> None:
        super().__init__(learner, server, journal, secrecy.rule)
        self._secrecy = secrecy
        self._floors = floors or Floors()
        self._journal = journal
        self._pledge: Pledge[ClientT] | None = None
        self._given: deque[str] = deque(maxlen=_MOST_REMEMBERED)  # digests of updates that have left
        self._revealed = ""  # the session that was last revealed, and for whom
        self._begun: deque[float] = deque()  # when sessions of the last hour were
        if journal is not None and (kept := journal.intact(_NAME)) is not None:
            self._given.extend(str(kept["given"]).split())
            self._revealed = str(kept["revealed"])

    @property
    def only_trains(self) -> bool:
        """Never: who does no more than that shows its update."""
        return False

    async def run(self, node: Node) -> None:
        try:
            await super().run(node)
        finally:
            self._leave()

    # -- what is refused -------------------------------------------------------------------------------------------

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        """Never: the answer would be our update in the clear."""
        raise self._refusal(peer, ask.round, "we were asked for our update in the clear")

    @Evaluate.handler
    async def evaluate(self, ask: Evaluate, peer: Peer) -> Score:
        """Never: a score tells of our examples."""
        raise self._refusal(peer, ask.round, "we were asked for our score in the clear")

    def _refusal(self, peer: Peer, round: int, what: str) -> AggregationAborted:
        require_seat(peer, self.server)
        peer.node.emit(AggregationLeft(round + 1, what))
        return AggregationAborted(f"{what}, and course.privacy forbids it")

    # -- the stages ------------------------------------------------------------------------------------------------

    @Enlist.handler
    async def enlist(self, ask: Enlist, peer: Peer) -> Keys:
        require_seat(peer, self.server)
        node, rule = peer.node, self._secrecy.rule
        received = rule.down.vector(ask.params)
        model = await self._learner.digest(received)
        session = Session(ask.run, ask.round, ask.session, model, self._secrecy.terms)
        update = await self._outbox.update(node, ask.round, ask.params)
        with self._watched(node, ask.round):
            if self._pledge is None or self._pledge.client.session != session:
                difference = rule.up.vector(update.params) - self._secrecy.reference(received)
                self._begin(node, session, update, difference, await self._learner.digest(difference))
            client = self._pledged(ask.session).client
        return Keys(client.advert.keys, client.advert.signature)

    def _begin(self, node: Node, session: Session, update: Update, difference: Tensor, found: str) -> None:
        """Take part in a session, and in none that there was before."""
        self._leave()
        if self._secrecy.run and session.run != self._secrecy.run:
            raise AggregationAborted("the session is of another run")
        if found in self._given:
            raise AggregationAborted("this update was given to a session before: it is not given to another")
        self._count()
        signer = signer_of(node)
        floors = replace(self._floors, admits=node.transport.admits)
        client, weight = self.client_type(session, signer, floors), self._secrecy.weight(update.num_examples)
        given = Given(difference, weight, update.loss, self._secrecy.seed(signer))
        self._pledge = Pledge(client, given, found, session.round)

    def _count(self) -> None:
        """Raise AggregationAborted for more sessions in an hour than we have agreed to."""
        now, most = asyncio.get_running_loop().time(), self._floors.sessions_per_hour
        while self._begun and self._begun[0] < now - _HOUR:
            self._begun.popleft()
        if most and len(self._begun) >= most:
            raise AggregationAborted(f"{most} sessions were begun within an hour, and we agree to no more")
        self._begun.append(now)

    # -- what they have in common ----------------------------------------------------------------------------------

    def _asked(self, peer: Peer, session: str) -> Pledge[ClientT]:
        require_seat(peer, self.server)
        return self._pledged(session)

    def _pledged(self, session: str) -> Pledge[ClientT]:
        """Raises AggregationAborted for any session but that which we take part in at the moment."""
        if self._pledge is None or self._pledge.client.session.nonce != session:
            raise AggregationAborted("this is not the session that we take part in")
        return self._pledge

    async def _encoded(self, pledge: Pledge[ClientT]) -> Words:
        """The update that is pledged, as integers."""
        words: Words = np.empty(self._secrecy.size, dtype=self._secrecy.terms.ring.dtype)
        await unhurried(self._secrecy.encoding(words, pledge.given, pledge.client.session))
        return words

    async def _give(self, pledge: Pledge[ClientT]) -> None:
        """Write down that the update is given to this session. Raises AggregationAborted."""
        if pledge.digest not in self._given:
            self._given.append(pledge.digest)
        await self._keep()

    async def _keep(self) -> None:
        """Write down what we have given and revealed. What cannot be written does not leave."""
        if self._journal is None:
            return
        try:
            await self._journal.keep(_NAME, {"given": " ".join(self._given), "revealed": self._revealed})
        except JournalError as error:
            raise AggregationAborted(f"what we are about to give cannot be written down: {error}") from error

    @contextmanager
    def _watched(self, node: Node, round: int) -> Iterator[None]:
        """What breaks the protocol ends our part in the session, and our user hears of it."""
        try:
            yield
        except AggregationAborted as error:
            self._leave()
            node.emit(AggregationLeft(round + 1, str(error)))
            raise

    def _leave(self) -> None:
        """Have no part in any session, and no secrets of one."""
        if self._pledge is not None:
            self._pledge.client.wipe()
        self._pledge = None


class SecretTrainer(PledgedTrainer[Client]):
    """A client whose update leaves under masks."""

    client_type = Client

    @Share.handler
    async def share(self, ask: Share, peer: Peer) -> Shares:
        pledge = self._asked(peer, ask.session)
        with self._watched(peer.node, pledge.round):
            dealt = pledge.client.share([Advert(*each) for each in ask.adverts])
        return Shares(dealt.commitment, dict(dealt.sealed), dealt.signature)

    @Mask.handler
    async def mask(self, ask: Mask, peer: Peer) -> Masked:
        pledge = self._asked(peer, ask.session)
        with self._watched(peer.node, pledge.round):
            masks, binding = pledge.client.receive(ask.sharers, ask.sealed), pledge.client.roster.binding
            words = await self._encoded(pledge)
            await unhurried(masking(words, masks, binding))
            found = await digest(words)
            await self._give(pledge)
            signature = self._pledged(ask.session).client.sign_masked(found)
        return Masked(self._secrecy.tensors(words), signature)

    @Confirm.handler
    async def confirm(self, ask: Confirm, peer: Peer) -> Confirmation:
        pledge = self._asked(peer, ask.session)
        with self._watched(peer.node, pledge.round):
            return Confirmation(pledge.client.confirm(ask.survivors))

    @Reveal.handler
    async def reveal(self, ask: Reveal, peer: Peer) -> Seeds:
        pledge = self._asked(peer, ask.session)
        with self._watched(peer.node, pledge.round):
            self._revealed = pledge.client.decide(ask.survivors, ask.confirmations).hex()
            await self._keep()
            revealed = self._pledged(ask.session).client.reveal()
        return Seeds(ask.session, dict(revealed.own), dict(revealed.mask), revealed.signature)
