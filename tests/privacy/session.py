"""A secure aggregation in one process: an aggregator, its clients, and who is lost when."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2pfl.errors import AggregationAborted
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.encoding import Encoding, Words
from p2pfl.privacy.secagg import Session, Terms
from p2pfl.privacy.secagg_client import Client, Floors
from p2pfl.privacy.secagg_masks import add_masks
from p2pfl.privacy.secagg_server import Aggregator
from p2pfl.privacy.thresholds import Resilience
from p2pfl.sim.signer import SimulatedSigner

SIZE = 5
STAGES = ("advertise", "share", "mask", "confirm", "reveal")


def signer(seat: int) -> SimulatedSigner:
    return SimulatedSigner(f"seat{seat:07d}", "test")


def terms(
    n: int,
    *,
    active: bool = True,
    adversaries: float = 0.05,
    dropouts: float = 0.2,
    bits: int = 16,
    encoding: Encoding | Distributed | None = None,
) -> Terms:
    return Terms(encoding or Encoding(bits=bits), Resilience(adversaries, dropouts, active), n, 100, "schema")


@dataclass
class Play:
    """`lost`: seats that are gone from a stage on, by the stage."""

    n: int
    session: Session
    lost: Mapping[str, Collection[int]] = field(default_factory=dict)
    floors: Floors = field(default_factory=Floors)

    def __post_init__(self) -> None:
        self.signers = [signer(seat) for seat in range(self.n)]
        self.clients = {each.peer_id: Client(self.session, each, self.floors) for each in self.signers}
        self.server = Aggregator(self.session, SIZE, self.signers[0].verifies)
        rng = np.random.default_rng(self.n)
        encoding, dtype = self.session.terms.encoding, self.session.terms.ring.dtype
        most = (1 << encoding.bits) - 1
        self.vectors: dict[str, Words] = {
            peer: rng.integers(0, most + 1, encoding.size(SIZE)).astype(dtype) for peer in self.clients
        }
        self.sent: dict[str, Words] = {}
        self.failed: dict[str, AggregationAborted] = {}

    def there(self, stage: str) -> list[str]:
        """Who is asked in a stage."""
        gone = {seat for each in STAGES[: STAGES.index(stage) + 1] for seat in self.lost.get(each, ())}
        return [
            each.peer_id
            for seat, each in enumerate(self.signers)
            if seat not in gone and each.peer_id not in self.failed
        ]

    def stage(self, name: str, step: Callable[[str, Client], None]) -> None:
        for peer in self.there(name):
            try:
                step(peer, self.clients[peer])
            except AggregationAborted as error:
                self.failed[peer] = error

    def advertise(self) -> None:
        self.stage("advertise", lambda peer, client: self.server.enlist(peer, client.advert))
        self.adverts = self.server.close_list()

    def share(self) -> None:
        listed = {each.peer for each in self.adverts}

        def step(peer: str, client: Client) -> None:
            if peer in listed:
                self.server.deal(peer, client.share(self.adverts))

        self.stage("share", step)
        self.sharers = self.server.close_shares()

    def mask(self) -> None:
        shared = self.server.roster.chosen(self.sharers)

        def step(peer: str, client: Client) -> None:
            if peer in shared:
                words, signature = self.masked(client)
                self.sent[peer] = words
                self.server.add(peer, words, digest(words), signature)

        self.stage("mask", step)
        self.survivors = self.server.close_sum()

    def masked(self, client: Client) -> tuple[Words, str]:
        masks = client.receive(self.sharers, self.server.sealed_for(client.me))
        words = self.vectors[client.me].copy()
        add_masks(words, masks, client.roster.binding)
        return words, client.sign_masked(digest(words))

    def confirm(self) -> None:
        chosen = self.server.survivors

        def step(peer: str, client: Client) -> None:
            if peer in chosen:
                self.server.confirm(peer, client.confirm(self.survivors))

        if self.session.terms.resilience.active:
            self.stage("confirm", step)
        self.server.close_confirmations()

    def reveal(self) -> Words:
        chosen = self.server.survivors

        def step(peer: str, client: Client) -> None:
            if peer in chosen:
                client.decide(self.survivors, self.server.confirmations(peer))
                self.server.reveal(peer, client.reveal())

        self.stage("reveal", step)
        return self.server.unmask()

    def run(self, until: str = "reveal") -> Words | None:
        """All stages until one of them; the sum, if that is the last."""
        found = None
        for name in STAGES[: STAGES.index(until) + 1]:
            found = getattr(self, name)()
        return found

    def clear(self) -> Words:
        """The sum of what the survivors have, without any mask."""
        return np.sum(
            [self.vectors[peer] for peer in self.server.survivors], axis=0, dtype=self.session.terms.ring.dtype
        )


def play(
    n: int,
    lost: Mapping[str, Collection[int]] | None = None,
    floors: Floors | None = None,
    most: int = 0,
    **of_terms: Any,
) -> Play:
    """A session that is about to be played. `most`: clients that there may be, if it is not all of them."""
    return Play(n, Session("run", 0, "nonce", "model", terms(most or n, **of_terms)), lost or {}, floors or Floors())


def digest(words: Words) -> bytes:
    return hashlib.sha256(words.tobytes()).digest()
