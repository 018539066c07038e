"""What a node learns of its neighbours: their weighted sum, as integers to the last bit, or nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import AggregationAborted
from p2pfl.privacy.encoding import Encoding, Words
from p2pfl.privacy.neighbourhood import Neighbour, neighbourhood_session, weighted_sum
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.secagg_masks import add_masks
from p2pfl.privacy.unanimous import Collector
from p2pfl.topology.families import build
from p2pfl.topology.weights import topology_weights
from tests.privacy.session import signer

SIZE = 40
RECEIVER = signer(99).peer_id


@dataclass
class Hood:
    """A receiver and its neighbours."""

    weights: dict[str, float]
    bits: int = 16
    round: int = 0
    sent: dict[str, Words] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.encoding = Encoding(bits=self.bits, clip=2.0)
        session = self.session()
        self.neighbours = {
            peer: Neighbour(session, signer(int(peer[4:])), Floors(), list(self.weights)) for peer in self.weights
        }
        self.receiver = Collector(session, SIZE + 3, signer(99).verifies)

    def session(self):
        terms = (self.encoding, "schema")
        return neighbourhood_session("run", self.round, RECEIVER, "nonce", self.weights, terms)

    def join(self) -> None:
        for peer, neighbour in self.neighbours.items():
            self.receiver.enlist(peer, neighbour.advert)
        adverts = self.receiver.close_list()
        for neighbour in self.neighbours.values():
            neighbour.join(adverts)

    def encoded(self, peer: str, vector: np.ndarray) -> Words:
        ring = self.receiver.session.terms.ring
        return self.encoding.encode(vector, self.weights[peer], float("nan"), ring, peer.encode().ljust(32))

    def give(self, peer: str, words: Words) -> None:
        neighbour = self.neighbours[peer]
        masked = words.copy()
        add_masks(masked, *neighbour.masks())
        self.sent[peer] = masked
        digest = hashlib.sha256(masked.tobytes()).digest()
        self.receiver.add(peer, masked, digest, neighbour.sign(digest))


def hood(n: int, **settings: object) -> Hood:
    return Hood({signer(seat).peer_id: 1 / (n + 1) for seat in range(n)}, **settings)


@settings(max_examples=12, deadline=None)
@given(n=st.integers(3, 8), bits=st.sampled_from([16, 24]), seed=st.integers(0, 2**32 - 1))
def test_the_sum_is_that_in_the_clear_to_the_last_bit(n: int, bits: int, seed: int) -> None:
    table = hood(n, bits=bits)
    table.join()
    rng, ring = np.random.default_rng(seed), table.receiver.session.terms.ring
    clear = {peer: table.encoded(peer, rng.normal(size=SIZE)) for peer in table.weights}
    for peer, words in clear.items():
        table.give(peer, words)
    assert np.array_equal(table.receiver.total(), np.sum(list(clear.values()), axis=0, dtype=ring.dtype))


def test_it_is_the_row_of_the_mixing_matrix() -> None:
    """In each neighbourhood of a torus; the error is that of rounding."""
    graph, rng = build("torus", 16), np.random.default_rng(0)
    models = rng.uniform(-1, 1, size=(16, SIZE)).astype(np.float32)
    for seat in (0, 5):
        row = topology_weights(graph, seat)
        table = Hood({signer(other).peer_id: weight for other, weight in row.items()})
        table.join()
        for other in row:
            table.give(signer(other).peer_id, table.encoded(signer(other).peer_id, models[other]))
        found = weighted_sum(table.encoding, table.receiver.total(), len(row))
        expected = sum(weight * models[other].astype(np.float64) for other, weight in row.items())
        assert np.abs(found - expected).max() <= len(row) * table.encoding.error


def test_what_is_given_looks_random_and_is_another_in_each_round() -> None:
    given_words = []
    for round in range(2):
        table = hood(3, round=round)
        table.join()
        for peer in table.weights:
            table.give(peer, table.encoded(peer, np.zeros(SIZE)))
        given_words += table.sent.values()
    assert all((words >> 16 == 0).mean() < 0.2 for words in given_words)  # of what is not masked, all would be
    assert len({words.tobytes() for words in given_words}) == len(given_words)


def test_without_one_there_is_no_sum() -> None:
    table = hood(4)
    table.join()
    *there, lost = table.weights
    for peer in there:
        table.give(peer, table.encoded(peer, np.zeros(SIZE)))
    with pytest.raises(AggregationAborted, match=f"{lost} has given nothing to the sum"):
        table.receiver.total()
    left = np.sum(list(table.sent.values()), axis=0, dtype=np.uint32)
    assert (left >> 20 == 0).mean() < 0.2  # the masks of those who are there and of who is not are still in it


def test_the_list_is_that_of_the_graph() -> None:
    """A receiver that leaves one out, to compare two sums, gets none."""
    table = hood(4)
    for peer, neighbour in table.neighbours.items():
        table.receiver.enlist(peer, neighbour.advert)
    adverts = table.receiver.close_list()
    with pytest.raises(AggregationAborted, match="not that of all neighbours"):
        table.neighbours[adverts[0].peer].join(adverts[:-1])


def test_two_neighbours_are_no_neighbourhood() -> None:
    table = hood(2)
    with pytest.raises(AggregationAborted, match="2 clients are on the list, and we ask for 3"):
        table.join()


def test_masks_are_for_one_receiver_one_round_and_one_row_of_weights() -> None:
    row = {signer(seat).peer_id: 0.2 for seat in range(4)}
    terms = (Encoding(), "schema")
    sessions = [
        neighbourhood_session("run", 0, RECEIVER, "nonce", row, terms),
        neighbourhood_session("run", 1, RECEIVER, "nonce", row, terms),
        neighbourhood_session("run", 0, signer(98).peer_id, "nonce", row, terms),
        neighbourhood_session("run", 0, RECEIVER, "nonce", {**row, signer(3).peer_id: 0.1}, terms),
        neighbourhood_session("run", 0, RECEIVER, "nonce", row, (Encoding(clip=1.0), "schema")),
    ]
    assert len({session.advertised(b"keys") for session in sessions}) == len(sessions)
    first = Neighbour(sessions[0], signer(0), Floors(), row)
    for other in sessions[1:]:
        with pytest.raises(AggregationAborted, match="has not signed these keys for this session"):
            Collector(other, SIZE, signer(99).verifies).enlist(first.me, first.advert)


def test_masks_are_given_once() -> None:
    table = hood(3)
    table.join()
    neighbour = next(iter(table.neighbours.values()))
    neighbour.masks()
    with pytest.raises(AggregationAborted, match="belongs behind"):
        neighbour.masks()
