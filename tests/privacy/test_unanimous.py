"""Lists, signatures and stages of sums that need everybody."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.errors import AggregationAborted
from p2pfl.privacy.secagg import Advert
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.unanimous import Collector, Party
from tests.privacy.session import signer
from tests.privacy.test_additive import session

SIZE = 6


def table(n: int = 3, floors: Floors | None = None) -> tuple[Collector, list[Party], tuple[Advert, ...]]:
    parties = [Party(session(n), signer(seat), floors or Floors()) for seat in range(n)]
    collector = Collector(session(n), SIZE, signer(0).verifies)
    for party in parties:
        collector.enlist(party.me, party.advert)
    return collector, parties, collector.close_list()


@pytest.mark.parametrize(
    ("adverts", "sentence"),
    [
        (lambda good: good[1:], "does not have our own entry"),
        (lambda good: good[:2], "2 clients are on the list, and we ask for 3"),
        (lambda good: (*good[:2], Advert(good[2].peer, good[2].keys, good[1].signature)), "has not signed these keys"),
        (lambda good: good[::-1], "not in the order of their ids"),
    ],
)
def test_a_list_that_is_wrong_is_refused(adverts, sentence: str) -> None:
    _, parties, good = table()
    with pytest.raises(AggregationAborted, match=sentence):
        parties[0].join(adverts(good))


def test_strangers_are_refused() -> None:
    known = {signer(seat).peer_id for seat in (0, 1)}
    _, parties, good = table(floors=Floors(admits=lambda peer: peer in known))
    with pytest.raises(AggregationAborted, match=f"{signer(2).peer_id} is on the list of clients, and is not admitted"):
        parties[0].join(good)


def test_nothing_comes_twice_or_before_the_list() -> None:
    _, parties, good = table()
    with pytest.raises(AggregationAborted, match="there is no list of clients yet"):
        parties[0].sign(bytes(32))
    parties[0].join(good)
    assert parties[0].others == (parties[1].me, parties[2].me)
    with pytest.raises(AggregationAborted, match="belongs behind ADVERTISED"):
        parties[0].join(good)


def test_the_collector_takes_one_signed_summand_of_each_and_needs_them_all() -> None:
    collector, parties, good = table()
    words, digest = np.arange(SIZE, dtype=np.uint64), bytes(32)
    for party in parties:
        party.join(good)
    with pytest.raises(AggregationAborted, match="has not signed a summand"):
        collector.add(parties[0].me, words, digest, parties[1].sign(digest))
    with pytest.raises(AggregationAborted, match="of another size"):
        collector.add(parties[0].me, words[1:], digest, parties[0].sign(digest))
    for party in parties:
        with pytest.raises(AggregationAborted, match="has given nothing to the sum"):
            collector.total()
        collector.add(party.me, words, digest, party.sign(digest))
    with pytest.raises(AggregationAborted, match="has not signed a summand that was asked for"):
        collector.add(parties[0].me, words, digest, parties[0].sign(digest))
    assert np.array_equal(collector.total(), 3 * words)
    assert repr(collector) == "<Collector of session nonce, 3 of 3 added>"


def test_nobody_enlists_another() -> None:
    collector, parties, _ = table()
    with pytest.raises(AggregationAborted, match="has sent another's keys"):
        collector.enlist(parties[0].me, parties[1].advert)


def test_what_is_wiped_agrees_on_nothing() -> None:
    _, parties, good = table()
    parties[0].join(good)
    parties[0].wipe()
    with pytest.raises(AggregationAborted, match="its key is gone"):
        parties[0]._agreed(parties[1].me)
