from collections import Counter
from dataclasses import replace
from itertools import chain, combinations, combinations_with_replacement
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.crypto.masks import commitment
from p2pfl.crypto.shares import PRIME
from p2pfl.errors import AggregationAborted
from p2pfl.privacy.secagg import Dealt, Revealed
from tests.privacy.session import STAGES, digest, play


def lost_at(stages: tuple[str | None, ...]) -> dict[str, list[int]]:
    return {name: [seat for seat, stage in enumerate(stages) if stage == name] for name in STAGES}


@pytest.mark.parametrize("active", [False, True])
def test_every_way_in_which_five_can_be_lost(active: bool) -> None:
    """Each at any stage, or not at all: the sum is that of the survivors in the clear, or there is none."""
    ends, rng = Counter[str](), Random(5)
    for chosen in combinations_with_replacement((*STAGES, None), 5):
        stages = tuple(rng.sample(chosen, 5))
        session = play(5, lost_at(stages), active=active)
        try:
            total = session.run()
        except AggregationAborted:
            ends["aborted"] += 1
        else:
            assert np.array_equal(total, session.clear())
            assert len(session.server.survivors) >= 3
            ends["summed"] += 1
    assert ends["summed"] >= 6 and ends["aborted"] > 100


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 26), st.booleans(), st.sampled_from([16, 24]), st.data())
def test_the_sum_is_that_in_the_clear(n: int, active: bool, bits: int, data: st.DataObject) -> None:
    few = st.one_of(st.none(), st.none(), st.none(), st.none(), st.sampled_from(STAGES))
    stages = data.draw(st.lists(few, min_size=n, max_size=n))
    session = play(n, lost_at(tuple(stages)), active=active, bits=bits)
    try:
        total = session.run()
    except AggregationAborted:
        return
    assert np.array_equal(total, session.clear())
    assert not session.failed and not session.server.culprits


def test_the_larger_ring() -> None:
    session = play(4, bits=24)
    assert session.session.terms.ring.bits == 32
    large = play(5, {"mask": [1]}, most=300, bits=24)
    assert large.session.terms.ring.bits == 64
    assert np.array_equal(large.run(), large.clear())


def test_a_sparse_graph_with_losses_at_every_stage() -> None:
    lost = {"advertise": [0], "share": [1, 2], "mask": [3, 4], "confirm": [5], "reveal": [6]}
    session = play(60, lost, adversaries=0.05, dropouts=0.2)
    total = session.run()
    assert session.server.roster.plan.degree < 58
    assert np.array_equal(total, session.clear())
    assert len(session.server.survivors) == 55


def change(revealed: Revealed, owner: str, session, peer: str) -> Revealed:
    """A client lies about its share of one owner's own seed, and signs that."""
    own = {**revealed.own, owner: bytes(31) + b"\1"}
    bare = Revealed(own, revealed.mask, "")
    client = session.clients[peer]
    statement = session.session.statement("reveal", client.roster.sid, *bare.body)
    return Revealed(own, revealed.mask, client._signer.sign(statement))


@pytest.mark.parametrize("liars", [0, 1, 2, 3])
def test_who_reveals_wrong_shares_is_named(liars: int) -> None:
    """Of nine shares it takes seven: one that is wrong can be corrected, more cannot."""
    session = play(9, active=True)
    session.run("confirm")
    owner = session.server.roster.peers[-1]
    for index, peer in enumerate(session.server.roster.peers):
        client = session.clients[peer]
        client.decide(session.survivors, session.server.confirmations(peer))
        revealed = client.reveal()
        session.server.reveal(peer, change(revealed, owner, session, peer) if index < liars else revealed)
    if liars <= 1:
        assert np.array_equal(session.server.unmask(), session.clear())
        named = session.server.roster.peers[:liars]
        assert session.server.culprits == dict.fromkeys(named, "has revealed wrong shares")
    else:
        with pytest.raises(AggregationAborted) as caught:
            session.server.unmask()
        assert caught.value.culprits == (owner,)


@pytest.mark.parametrize("what", ["own", "mask"])
def test_who_deals_shares_of_another_seed_is_named(what: str) -> None:
    session = play(5, {"mask": [1] if what == "mask" else []}, active=True)
    session.advertise()
    liar = session.signers[1].peer_id
    secret = session.clients[liar]._own_seed if what == "own" else session.clients[liar]._mask_seed
    true = bytes(secret)
    secret[:] = (int.from_bytes(true, "little") ^ 1).to_bytes(32, "little")  # what is dealt, and not what is used
    dealt = session.clients[liar].share(session.adverts)
    secret[:] = true
    for peer, client in session.clients.items():
        if peer != liar:
            session.server.deal(peer, client.share(session.adverts))
    if what == "own":  # the commitment is to the seed that is used
        kept = commitment(int.from_bytes(true, "little"))
        bare = Dealt(kept, dealt.sealed, "")
        dealt = Dealt(kept, dealt.sealed, session.clients[liar]._sign("share", *bare.body))
    session.server.deal(liar, dealt)
    session.sharers = session.server.close_shares()
    session.mask()
    session.confirm()
    with pytest.raises(AggregationAborted, match="than it") as caught:
        session.reveal()
    assert caught.value.culprits == (liar,)


def test_a_vector_that_comes_late_is_not_taken_and_cannot_be_unmasked() -> None:
    """The reason for the mask that each client has for itself."""
    session = play(6, {"mask": [2]}, active=True)
    late = session.signers[2].peer_id
    session.run("share")
    words, signature = session.masked(session.clients[late])
    session.mask()
    with pytest.raises(AggregationAborted, match="this comes in stage CONFIRMED"):
        session.server.add(late, words, b"", signature)
    session.confirm()
    assert np.array_equal(session.reveal(), session.clear())
    revealed = session.server._revealed.values()
    assert not any(late in each.own for each in revealed)  # the seed of its own mask is known to nobody else
    assert all(late in each.mask for each in revealed)


def test_what_is_not_signed_does_not_fit_or_was_not_asked_for_is_refused() -> None:
    session = play(4, active=True)
    server, (one, two) = session.server, session.signers[:2]
    with pytest.raises(AggregationAborted, match="another's keys"):
        server.enlist(one.peer_id, session.clients[two.peer_id].advert)
    with pytest.raises(AggregationAborted, match="belongs to SHARED"):
        server.deal(one.peer_id, Dealt(b"", {}, ""))
    session.advertise()
    dealt = session.clients[one.peer_id].share(session.adverts)
    for changed in (Dealt(b"x", dealt.sealed, dealt.signature), Dealt(dealt.commitment, {}, dealt.signature)):
        with pytest.raises(AggregationAborted, match="has not signed what it gives in stage share") as caught:
            server.deal(one.peer_id, changed)
        assert caught.value.culprits == (one.peer_id,)
    fewer = {peer: sealed for peer, sealed in dealt.sealed.items() if peer != two.peer_id}
    bare = Dealt(dealt.commitment, fewer, "")
    with pytest.raises(AggregationAborted, match="not dealt shares to just its neighbours"):
        server.deal(
            one.peer_id, Dealt(dealt.commitment, fewer, session.clients[one.peer_id]._sign("share", *bare.body))
        )
    session.share()
    words, signature = session.masked(session.clients[one.peer_id])
    with pytest.raises(AggregationAborted, match="in stage mask"):
        server.add(one.peer_id, words, b"another", signature)
    server.add(one.peer_id, words, digest(words), signature)
    with pytest.raises(AggregationAborted, match="a vector that was not asked for"):
        server.add(one.peer_id, words, digest(words), signature)
    with pytest.raises(AggregationAborted, match="1 clients have sent a vector, and it takes 4"):
        server.close_sum()


def test_shares_that_are_no_elements_of_the_field_are_refused() -> None:
    session = play(4, active=True)
    session.run("confirm")
    peer, client = next(iter(session.clients.items()))
    client.decide(session.survivors, session.server.confirmations(peer))
    revealed = client.reveal()
    for own in ({**revealed.own, peer: PRIME.to_bytes(32, "little")}, {**revealed.own, peer: b"short"}, {}):
        bare = Revealed(own, revealed.mask, "")
        signature = client._sign("reveal", client.roster.sid, *bare.body)
        with pytest.raises(AggregationAborted, match="not revealed just the shares"):
            session.server.reveal(peer, Revealed(own, revealed.mask, signature))


def test_sizes_do_not_depend_on_data() -> None:
    """What anybody sees of a client is as long whatever it has."""
    sizes = []
    for fill in (0, 1):
        session = play(5, active=True)
        for vector in session.vectors.values():
            vector[:] = fill * session.session.terms.encoding.top
        session.run()
        revealed = [
            [len(share) for share in chain(each.own.values(), each.mask.values())]
            for each in session.server._revealed.values()
        ]
        sealed = [sorted(map(len, each.sealed.values())) for each in session.server._dealt.values()]
        sizes.append((revealed, sealed, [len(words) for words in session.sent.values()]))
    assert sizes[0] == sizes[1]


def test_two_sessions_of_the_same_clients_have_nothing_in_common() -> None:
    first = play(4)
    first.run("mask")
    second = play(4)
    second.session = replace(first.session, round=1)
    second.__post_init__()
    second.run("mask")
    for peer in first.sent:
        masks = [session.sent[peer] - session.vectors[peer] for session in (first, second)]
        assert not (masks[0] == masks[1]).any()
    for one, other in combinations(first.sent.values(), 2):
        assert not (one == other).any()
