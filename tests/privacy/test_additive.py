"""Additive shares: the sum to the last bit, and every deviation ends the session."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import AggregationAborted
from p2pfl.privacy.additive import MOST_CLIENTS, Adder, Splitter, sealed_bytes
from p2pfl.privacy.encoding import Encoding, Words
from p2pfl.privacy.secagg import Advert, Session, Terms
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.thresholds import Resilience
from tests.privacy.session import signer

SIZE = 6


def session(n: int, model: str = "model") -> Session:
    terms = Terms(Encoding(), Resilience(0.0, 0.0, active=False), max(n, MOST_CLIENTS), 100, "schema", wide=True)
    return Session("run", 0, "nonce", model, terms)


@dataclass
class Table:
    """A coordinator and its clients, with nothing between."""

    n: int
    floors: Floors = field(default_factory=Floors)
    size: int = SIZE

    def __post_init__(self) -> None:
        signers = [signer(seat) for seat in range(self.n)]
        self.clients = {each.peer_id: Splitter(session(self.n), each, self.floors) for each in signers}
        self.server = Adder(session(self.n), self.size, signers[0].verifies)

    def enlist(self) -> tuple[Advert, ...]:
        for peer, client in self.clients.items():
            self.server.enlist(peer, client.advert)
        return self.server.close_list()

    def split(self, vectors: dict[str, Words]) -> None:
        adverts = self.enlist()
        for peer, client in self.clients.items():
            client.join(adverts)
            self.server.deal(peer, [memoryview(each) for each in client.splitting(vectors[peer].copy())])
        self.server.close_shares()

    def add(self, peer: str) -> None:
        client = self.clients[peer]
        for _ in client.adding(self.server.sealed_for(peer)):
            pass
        words = client.total()
        digest = hashlib.sha256(words.tobytes()).digest()
        self.server.add(peer, words, digest, client.sign(digest))

    def vectors(self, seed: int = 0) -> dict[str, Words]:
        rng = np.random.default_rng(seed)
        return {peer: rng.integers(0, 2**64, self.size, dtype=np.uint64) for peer in self.clients}


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, MOST_CLIENTS), data=st.data())
def test_the_sum_is_that_in_the_clear_to_the_last_bit(n: int, data: st.DataObject) -> None:
    table = Table(n, size=3)
    entries = st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3)
    vectors = {peer: np.array(data.draw(entries), dtype=np.uint64) for peer in table.clients}
    table.split(vectors)
    for peer in table.clients:
        table.add(peer)
    assert np.array_equal(table.server.total(), np.sum(list(vectors.values()), axis=0, dtype=np.uint64))
    assert list(table.server.added) == list(table.clients)


def test_what_the_coordinator_sees_of_one_client_is_random() -> None:
    """The sum of all but one client's shares still has that one's: of zeros, it is uniform over the 256 first bytes."""
    table = Table(3, size=1 << 14)
    table.split({peer: np.zeros(table.size, dtype=np.uint64) for peer in table.clients})
    peer, client = next(iter(table.clients.items()))
    for _ in client.adding(table.server.sealed_for(peer)):
        pass
    counts = np.bincount(client.total().view(np.uint8), minlength=256)
    expected = table.size * 8 / 256
    assert ((counts - expected) ** 2 / expected).sum() < 360  # of 255 degrees of freedom, but for one in 10^5


@pytest.mark.parametrize("stage", ["split", "add"])
def test_whoever_is_lost_ends_it_and_is_named(stage: str) -> None:
    table = Table(4)
    vectors, lost = table.vectors(), list(table.clients)[2]
    if stage == "split":
        adverts = table.enlist()
        for peer, client in table.clients.items():
            if peer != lost:
                client.join(adverts)
                table.server.deal(peer, [memoryview(each) for each in client.splitting(vectors[peer])])
        with pytest.raises(AggregationAborted, match=f"{lost} has not dealt"):
            table.server.close_shares()
    else:
        table.split(vectors)
        for peer in table.clients:
            if peer != lost:
                table.add(peer)
        with pytest.raises(AggregationAborted, match=f"{lost} has given nothing to the sum"):
            table.server.total()


def test_a_share_that_was_changed_or_is_for_another_names_its_sender() -> None:
    for change in ("bit", "route"):
        table = Table(3)
        table.split(table.vectors())
        one, other, _ = table.clients
        sealed = [bytes(each) for each in table.server.sealed_for(one)]
        if change == "bit":
            sealed[0] = sealed[0][:-1] + bytes([sealed[0][-1] ^ 1])
        else:
            sealed[0] = bytes(table.server.sealed_for(other)[0])
        with pytest.raises(AggregationAborted, match=f"{other} has sealed a share for us that does not open"):
            list(table.clients[one].adding(sealed))


def test_shares_open_only_among_those_who_have_seen_one_list() -> None:
    """A coordinator that shows another list to one client gets nothing that adds up."""
    table = Table(4)
    adverts, vectors = table.enlist(), table.vectors()
    one, *others = table.clients
    last = others[-1]
    table.clients[one].join(adverts[:-1])
    for peer in others:
        table.clients[peer].join(adverts)
    dealt = {
        peer: dict(zip(client.others, client.splitting(vectors[peer]), strict=True))
        for peer, client in table.clients.items()
    }
    with pytest.raises(AggregationAborted, match="does not open"):
        list(table.clients[one].adding([dealt[peer][one] for peer in others if peer != last]))


def test_clients_that_trained_from_another_model_are_refused() -> None:
    table = Table(3)
    stranger = Splitter(session(3, "another"), signer(2), Floors())
    with pytest.raises(AggregationAborted, match="has not signed these keys for this session, model and terms"):
        table.server.enlist(signer(2).peer_id, stranger.advert)


def test_sixteen_are_the_most() -> None:
    table = Table(MOST_CLIENTS + 1)
    with pytest.raises(AggregationAborted, match=f"at most {MOST_CLIENTS} add up by shares"):
        next(iter(table.clients.values())).join(table.enlist())


def test_no_stage_is_done_twice_and_none_behind_the_end() -> None:
    table = Table(3)
    table.split(table.vectors())
    client = table.clients[signer(0).peer_id]
    with pytest.raises(AggregationAborted, match="belongs behind"):
        list(client.splitting(np.zeros(SIZE, dtype=np.uint64)))
    fresh = Table(3)
    client = fresh.clients[signer(0).peer_id]
    client.join(fresh.enlist())
    splitting = client.splitting(np.zeros(SIZE, dtype=np.uint64))
    next(splitting)
    client.wipe()
    with pytest.raises(AggregationAborted, match="its key is gone"):
        next(splitting)


def test_the_coordinator_refuses_what_it_did_not_ask_for() -> None:
    table = Table(3)
    table.split(table.vectors())
    one = next(iter(table.clients))
    with pytest.raises(AggregationAborted, match="has not dealt one share"):
        table.server.deal(one, [memoryview(bytes(sealed_bytes(SIZE)))] * 2)
