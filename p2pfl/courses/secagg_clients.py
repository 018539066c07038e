"""The coordinator's clients where it is to see no update: each round is a session of secure aggregation.

What is given out, who is asked and how long is waited are as in rounds.py. Whatever goes wrong with a session, its
round has no update; there is no other way to have one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from p2pfl.courses.diagnosis import Diagnosis
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Train
from p2pfl.courses.rounds import Clients, Cohort, Collected, ReplyT, RoundRules, seat_of
from p2pfl.courses.secagg import (
    AggregationFailed,
    Confirm,
    Confirmation,
    Enlist,
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
from p2pfl.errors import AggregationAborted, RemoteProtocolError
from p2pfl.journal.certificate import Contribution
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.replies import Replies
from p2pfl.privacy.encoding import Words
from p2pfl.privacy.secagg import Advert, Dealt, Revealed, Session
from p2pfl.privacy.secagg_server import Aggregator
from p2pfl.wire.message import Request

__all__ = ["Play", "SecretClients", "SummedClients"]

_NONCE_BYTES = 16
_Take = Callable[[Peer, ReplyT, float], Awaitable[None]]
"""Takes an answer, which came after so many seconds."""


class Enlists(Protocol):
    """A coordinator's side of a session, of which the first stage is to take keys."""

    session: Session

    def enlist(self, peer: str, advert: Advert) -> None:
        """Take a client's keys."""


AggregatorT = TypeVar("AggregatorT", bound=Enlists)


class Play(Generic[AggregatorT]):
    """One session that is under way."""

    def __init__(self, node: Node, aggregator: AggregatorT, peers: Iterable[Peer]) -> None:
        self.node = node
        self.aggregator = aggregator
        self.peers = {peer.id: peer for peer in peers}
        self.survivors: list[int] = []

    @property
    def nonce(self) -> str:
        return self.aggregator.session.nonce

    @property
    def round(self) -> int:
        return self.aggregator.session.round

    def of(self, peer_ids: Iterable[str]) -> list[Peer]:
        """These peers, by seat."""
        return sorted((self.peers[peer_id] for peer_id in peer_ids), key=seat_of)


class SummedClients(Clients, ABC, Generic[AggregatorT]):
    """Clients whose updates are seen only in their sum, whatever kind of session makes it."""

    def __init__(
        self, seats: Iterable[int], rules: RoundRules, learner: Learner, secrecy: Secrecy, *, certify: bool = False
    ) -> None:
        """`certify`: note the hash of each masked update. What it weighs is not known, and noted as 1."""
        super().__init__(seats, rules, learner, up=secrecy.rule.up, certify=certify)
        self._secrecy = secrecy

    async def train(self, node: Node, cohort: Cohort, ask: Train, diagnosis: Diagnosis | None = None) -> Collected:
        """Let the cohort train and add up; nothing, if the session fails."""
        assert diagnosis is None, "nobody sees an update, to look at it"
        node.agree(self._secrecy.schema)
        try:
            return await self._session(node, cohort, ask)
        except (AggregationAborted, RemoteProtocolError) as error:
            node.emit(AggregationFailed(ask.round + 1, str(error)))
            return Collected(None, 0, 0, None)
        finally:
            await self.dismiss(node, cohort.peers)

    @abstractmethod
    async def _session(self, node: Node, cohort: Cohort, ask: Train) -> Collected:
        """The mean of a session. Raises AggregationAborted, or RemoteProtocolError, where there is none."""

    async def _begin(self, node: Node, ask: Train) -> Session:
        """A session for the round that is asked for."""
        model = await self.learner.digest(self._secrecy.rule.down.vector(ask.params))
        nonce = signer_of(node).draw(_NONCE_BYTES).hex()
        return Session(self._secrecy.run, ask.round, nonce, model, self._secrecy.terms)

    async def _ask(
        self, play: Play[AggregatorT], requests: Mapping[Peer, Request[ReplyT]], take: _Take[ReplyT]
    ) -> None:
        """A stage behind the first: all who are left are waited for, since each that is lost costs the others."""
        replies = Replies(play.node, requests, self.patience(play.node))
        await self._gather(replies, play.node, play.round, take, len(requests))

    async def _advertise(self, play: Play[AggregatorT], ask: Train) -> None:
        async def take(peer: Peer, keys: Keys, _: float) -> None:
            play.aggregator.enlist(peer.id, Advert(peer.id, keys.keys, keys.signature))

        enlist = Enlist(play.nonce, self._secrecy.run, ask.round, ask.params)
        replies = play.node.ask_all(play.peers.values(), enlist, rejoin_seconds=self.patience(play.node))
        enough = min(self.rules.enough(self.total), len(play.peers))
        await self._gather(replies, play.node, play.round, take, enough)

    def _collected(self, play: Play[AggregatorT], total: Words, hashes: Mapping[str, bytes], ask: Train) -> Collected:
        """What a sum comes to. `hashes`: of what each client has sent of it, by peer id."""
        secrecy, clients = self._secrecy, play.of(hashes)
        mean = secrecy.decode(total, len(clients), play.aggregator.session)
        reference = secrecy.reference(secrecy.rule.down.vector(ask.params))
        vector = torch.from_numpy(mean.vector.astype(np.float32)).add_(reference)
        contributions = (Contribution(seat_of(peer), peer.id, hashes[peer.id].hex(), 1.0) for peer in clients)
        return Collected(
            vector,
            len(clients),
            round(mean.weight * secrecy.terms.most_examples),
            mean.loss,
            tuple(contributions) if self.certify else (),
            metrics={"clipped": mean.clipped},
        )


class SecretClients(SummedClients[Aggregator]):
    """Clients whose updates are added up under masks."""

    async def _session(self, node: Node, cohort: Cohort, ask: Train) -> Collected:
        session = await self._begin(node, ask)
        aggregator = Aggregator(session, self._secrecy.rule.up.numel, signer_of(node).verifies)
        play = Play(node, aggregator, cohort.peers)
        await self._advertise(play, ask)
        await self._share(play)
        await self._mask(play)
        if self._secrecy.terms.resilience.active:
            await self._confirm(play)
        await self._reveal(play)
        return await self._add_up(play, ask)

    async def _share(self, play: Play[Aggregator]) -> None:
        async def take(peer: Peer, shares: Shares, _: float) -> None:
            play.aggregator.deal(peer.id, Dealt(shares.commitment, shares.sealed, shares.signature))

        adverts = play.aggregator.close_list()
        ask = Share(play.nonce, [(each.peer, each.keys, each.signature) for each in adverts])
        await self._ask(play, dict.fromkeys(play.of(advert.peer for advert in adverts), ask), take)

    async def _mask(self, play: Play[Aggregator]) -> None:
        async def take(peer: Peer, masked: Masked, _: float) -> None:
            words = self._secrecy.words(masked.words)
            play.aggregator.add(peer.id, words, await digest(words), masked.signature)

        sharers = play.aggregator.close_shares()
        asked = play.of(play.aggregator.roster.chosen(sharers))
        asks = {peer: Mask(play.nonce, sharers, play.aggregator.sealed_for(peer.id)) for peer in asked}
        await self._ask(play, asks, take)
        play.survivors = play.aggregator.close_sum()

    async def _confirm(self, play: Play[Aggregator]) -> None:
        async def take(peer: Peer, confirmation: Confirmation, _: float) -> None:
            play.aggregator.confirm(peer.id, confirmation.signature)

        ask = Confirm(play.nonce, play.survivors)
        await self._ask(play, dict.fromkeys(play.of(play.aggregator.survivors), ask), take)

    async def _reveal(self, play: Play[Aggregator]) -> None:
        async def take(peer: Peer, seeds: Seeds, _: float) -> None:
            play.aggregator.reveal(peer.id, Revealed(seeds.own, seeds.mask, seeds.signature))

        asks = {
            peer: Reveal(play.nonce, play.survivors, play.aggregator.confirmations(peer.id))
            for peer in play.of(play.aggregator.close_confirmations())
        }
        await self._ask(play, asks, take)

    async def _add_up(self, play: Play[Aggregator], ask: Train) -> Collected:
        """What all stages come to."""
        aggregator = play.aggregator
        try:
            await unhurried(aggregator.unmasking())
        finally:
            for peer_id, what in aggregator.culprits.items():
                self.missed(play.node, play.round, play.peers[peer_id], AggregationAborted(what), 0.0)
        total = aggregator.unmask()
        for peer in play.of(aggregator.survivors - aggregator.culprits.keys()):
            self._welcome(play.node, peer, play.round)
        return self._collected(play, total, aggregator.masked, ask)
