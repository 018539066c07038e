"""What a coordinator may try, and what becomes of it: the catalogue of attacks, one test or more for each."""

from dataclasses import replace

import numpy as np
import pytest

from p2pfl.crypto.masks import public_of
from p2pfl.errors import AggregationAborted, ConfigError, RemoteProtocolError
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.secagg import Advert, Session, Stage
from p2pfl.privacy.secagg_client import Client, Floors
from p2pfl.privacy.secagg_masks import add_masks
from p2pfl.privacy.thresholds import Resilience
from tests.privacy.session import SIZE, Play, digest, play, signer, terms


def advertised(n: int = 5, **of_terms: object) -> tuple[Play, Client, list[Advert]]:
    session = play(n, **of_terms)
    session.advertise()
    return session, session.clients[session.signers[0].peer_id], list(session.adverts)


def is_wiped(client: Client) -> bool:
    secrets = (client._share_key, client._mask_key, client._mask_seed, client._own_seed)
    return client.stage is Stage.OVER and not any(map(any, secrets)) and not client._held


# -- double reveal ---------------------------------------------------------------------------------------------------


def without(survivors: list[int], seat: int) -> list[int]:
    return [index for index in survivors if index != seat]


@pytest.mark.parametrize("active", [False, True])
def test_a_second_different_reveal_is_refused(active: bool) -> None:
    session = play(6, active=active)
    session.run("confirm")
    for peer, client in session.clients.items():
        seen = session.server.confirmations(peer)
        record = client.decide(session.survivors, seen)
        assert client.decide(session.survivors, seen) == record  # the answer may have been lost
        first = client.reveal()
        assert client.reveal() == first
        with pytest.raises(AggregationAborted, match="a second, different question"):
            client.decide(without(session.survivors, (session.server.roster.place(peer)) % 6), seen)
        assert is_wiped(client)
        with pytest.raises(AggregationAborted):
            client.reveal()


def test_no_client_is_both_alive_and_gone_to_anybody() -> None:
    session = play(6, {"mask": [4]})
    session.run("confirm")
    for peer in session.server.survivors:
        client = session.clients[peer]
        client.decide(session.survivors, session.server.confirmations(peer))
        revealed = client.reveal()
        assert not revealed.own.keys() & revealed.mask.keys()
        assert revealed.own.keys() == session.server.survivors
        assert revealed.mask.keys() == {session.signers[4].peer_id}


def test_sets_that_differ_are_confirmed_by_too_few() -> None:
    """A coordinator tells one half that a client lives, and the other half that it is gone: it gets no share at all."""
    session = play(9)
    session.run("mask")
    peers = session.server.roster.peers
    victim, others = peers[0], peers[1:]
    halves = {
        peer: session.survivors if index % 2 else without(session.survivors, 0) for index, peer in enumerate(others)
    }
    signed = {peer: session.clients[peer].confirm(halves[peer]) for peer in others}
    signed[victim] = session.clients[victim].confirm(session.survivors)
    for peer in peers:
        with pytest.raises(AggregationAborted, match=r"\d neighbours have confirmed this set, and it takes 7"):
            session.clients[peer].decide(halves.get(peer, session.survivors), signed)


def test_another_set_than_was_confirmed_is_not_revealed_for() -> None:
    session = play(6)
    session.run("confirm")
    client = session.clients[session.signers[0].peer_id]
    with pytest.raises(AggregationAborted, match="another set of clients than we have confirmed"):
        client.decide(without(session.survivors, 3), session.server.confirmations(client.me))
    assert is_wiped(client)


def test_confirmations_are_of_neighbours_and_of_this_set() -> None:
    session = play(6)
    session.run("confirm")
    client = session.clients[session.signers[0].peer_id]
    forged = dict.fromkeys(session.server.confirmations(client.me), signer(0).sign(b"something else"))
    with pytest.raises(AggregationAborted, match="0 neighbours have confirmed this set"):
        client.decide(session.survivors, forged)


@pytest.mark.parametrize(
    ("survivors", "sentence"),
    [
        ([1, 2, 3, 4, 5], "we have sent our vector, and are said to be gone"),
        ([0, 1, 2, 3, 5], "said to have sent a vector who has not shared"),
        ([0, 1, 2, 3, 3, 4], "not one of the list"),
        ([0, 1, 2, 3, 9], "not one of the list"),
        ([0, 1, 2], "3 of our neighbours and us have sent a vector, and it takes 5"),
    ],
)
def test_sets_that_cannot_be(survivors: list[int], sentence: str) -> None:
    session = play(6, {"share": [5]})
    session.run("mask")
    with pytest.raises(AggregationAborted, match=sentence):
        session.clients[session.signers[0].peer_id].confirm(survivors)


# -- keys and lists --------------------------------------------------------------------------------------------------


def test_a_key_that_was_changed_is_noticed_before_shares_leave() -> None:
    for part in range(3):
        session, client, adverts = advertised()
        keys = bytearray(adverts[2].keys)
        keys[32 * part : 32 * part + 32] = public_of(b"the coordinator's own secret key")
        adverts[2] = replace(adverts[2], keys=bytes(keys))
        with pytest.raises(AggregationAborted, match="has not signed these keys") as caught:
            client.share(adverts)
        assert caught.value.culprits == (session.signers[2].peer_id,)
        assert is_wiped(client)


def test_our_own_entry_must_be_there_as_we_signed_it() -> None:
    session, client, adverts = advertised()
    with pytest.raises(AggregationAborted, match="our own entry"):
        client.share(adverts[1:])
    _, client, adverts = advertised()
    earlier = signer(0)
    earlier.draw(1)  # so that it draws other keys
    other = Client(session.session, earlier, Floors())
    with pytest.raises(AggregationAborted, match="our own entry"):
        client.share([other.advert, *adverts[1:]])


def test_nobody_is_on_the_list_twice_or_under_anothers_key() -> None:
    _, client, adverts = advertised()
    with pytest.raises(AggregationAborted, match="in the order of their ids, each once"):
        client.share([*adverts[:-1], adverts[-2]])
    session, client, adverts = advertised()
    copied = replace(adverts[1], keys=adverts[2].keys)
    signature = session.signers[1].sign(session.session.advertised(copied.keys))
    with pytest.raises(AggregationAborted, match="two clients of the list have one key"):
        client.share([adverts[0], replace(copied, signature=signature), *adverts[2:]])


def test_a_list_of_the_coordinators_own_clients_is_refused() -> None:
    """All but one are not admitted by who is not."""
    ours = signer(0).peer_id
    session = play(5, floors=Floors(admits=lambda peer: peer == ours))
    session.advertise()
    with pytest.raises(AggregationAborted, match="is not admitted here") as caught:
        session.clients[ours].share(session.adverts)
    assert caught.value.culprits == session.server.roster.peers[1:]


def test_adverts_of_another_session_are_none_here() -> None:
    for changed in ({"nonce": "another"}, {"round": 1}, {"run": "another"}):
        session, client, adverts = advertised()
        foreign = Client(replace(session.session, **changed), signer(2), Floors())
        adverts[2] = foreign.advert
        with pytest.raises(AggregationAborted, match="has not signed these keys for this session"):
            client.share(adverts)


# -- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed", [{"model": "another"}, {"terms": replace(terms(5), schema="a model with an imprint layer")}]
)
def test_who_was_given_another_model_is_noticed_before_shares_leave(changed: dict[str, object]) -> None:
    session, client, adverts = advertised()
    victim = Client(replace(session.session, **changed), signer(2), Floors())
    adverts[2] = victim.advert
    with pytest.raises(AggregationAborted, match="for this session, model and terms") as caught:
        client.share(adverts)
    assert caught.value.culprits == (victim.me,)
    with pytest.raises(AggregationAborted, match="for this session, model and terms"):
        victim.share(adverts)  # nor does the victim believe the others


def test_masks_of_who_has_another_model_do_not_cancel() -> None:
    """Even if the signed hash could be forged: the sum is noise, and nobody's vector."""
    session = play(5)
    session.run("share")
    victim = session.clients[session.signers[2].peer_id]
    roster = victim.roster
    roster.session = replace(roster.session, model="another")
    roster.sid  # noqa: B018 - it was found before, and is the same
    session.mask()
    session.confirm()
    total = session.reveal()
    clear = session.clear()
    assert not (total == clear).any() and not (total == session.vectors[victim.me]).any()
    with pytest.raises(RemoteProtocolError, match="out of range"):
        session.session.terms.encoding.check(total, 5)


# -- floors ----------------------------------------------------------------------------------------------------------


def test_a_cohort_below_what_a_client_asks_for() -> None:
    session = play(5, floors=Floors(min_cohort=6))
    session.advertise()
    with pytest.raises(AggregationAborted, match="5 clients are on the list, and we ask for 6"):
        session.clients[signer(0).peer_id].share(session.adverts)
    session = play(7, {"mask": [6]}, floors=Floors(min_cohort=7))
    session.run("mask")
    with pytest.raises(AggregationAborted, match="the sum is of 6 vectors, and we ask for 7"):
        session.clients[signer(0).peer_id].confirm(session.survivors)


def test_two_are_no_cohort() -> None:
    session = play(2, active=False)
    session.advertise()
    with pytest.raises(AggregationAborted, match="2 clients are on the list, and we ask for 3"):
        session.clients[signer(0).peer_id].share(session.adverts)
    with pytest.raises(ConfigError, match="min_cohort is 2; it must be at least 3"):
        Floors(min_cohort=2)


@pytest.mark.parametrize("active", [True, False])
def test_no_sum_is_told_without_the_noise_that_was_paid_for(active: bool) -> None:
    """Ten of twelve would do for the masks, and for the noise of twelve, of whom a tenth may be absent, it takes 11."""
    noise = Distributed(SIZE, clients=10, clip=1.0, multiplier=1.0, absent=0.1, dishonest=0.05)
    session = play(12, {"mask": [10, 11]}, active=active, encoding=noise)
    with pytest.raises(AggregationAborted, match="the sum is of 10 vectors, and only those of 11 have the noise"):
        session.run("mask")
    survivors = session.server.roster.indices(session.server.masked)
    client = session.clients[signer(0).peer_id]
    with pytest.raises(AggregationAborted, match="the sum is of 10 vectors, and only those of 11 have the noise"):
        client.confirm(survivors) if active else client.decide(survivors, {})
    enough = play(12, {"mask": [11]}, active=active, encoding=noise)
    total = enough.run()
    assert (total == enough.clear()).all()


def test_nobody_can_lower_the_threshold() -> None:
    """It is not in any message: who goes by other terms is not understood by who does not."""
    session, client, adverts = advertised()
    weaker = replace(session.session, terms=replace(session.session.terms, resilience=Resilience(0.0, 0.9, False)))
    adverts[2] = Client(weaker, signer(2), Floors()).advert
    with pytest.raises(AggregationAborted, match="model and terms"):
        client.share(adverts)
    session = play(9, floors=Floors(min_threshold=0.8))
    session.advertise()
    with pytest.raises(AggregationAborted, match=r"7 of 9 shares would reveal, and we ask for more than 0\.8"):
        session.clients[signer(0).peer_id].share(session.adverts)


# -- shares and masks ------------------------------------------------------------------------------------------------


def test_sealed_shares_that_do_not_open_name_their_sender() -> None:
    session = play(5)
    session.run("share")
    client = session.clients[signer(0).peer_id]
    sealed = session.server.sealed_for(client.me)
    liar = signer(3).peer_id
    for wrong in (bytes(80), sealed[signer(2).peer_id], sealed[liar][:-1]):
        session = play(5)
        session.run("share")
        client = session.clients[signer(0).peer_id]
        with pytest.raises(AggregationAborted, match="do not open") as caught:
            client.receive(session.sharers, {**session.server.sealed_for(client.me), liar: wrong})
        assert caught.value.culprits == (liar,)
        assert is_wiped(client)


def test_shares_come_of_just_the_neighbours_who_have_shared() -> None:
    for change in (lambda sealed: sealed.popitem(), lambda sealed: sealed.update({signer(9).peer_id: b""})):
        session = play(5)
        session.run("share")
        client = session.clients[signer(0).peer_id]
        sealed = session.server.sealed_for(client.me)
        change(sealed)
        with pytest.raises(AggregationAborted, match="not those of our neighbours who have shared"):
            client.receive(session.sharers, sealed)


def test_no_vector_is_masked_among_too_few() -> None:
    session = play(6)
    session.run("share")
    client = session.clients[signer(0).peer_id]
    few = session.sharers[:4]
    sealed = {
        peer: each
        for peer, each in session.server.sealed_for(client.me).items()
        if peer in session.server.roster.peers[:4]
    }
    with pytest.raises(AggregationAborted, match="4 of our neighbours and us have shared, and it takes 5"):
        client.receive(few, sealed)


def test_stages_come_in_order_and_once() -> None:
    session = play(5)
    session.advertise()
    client = session.clients[signer(0).peer_id]
    assert client.share(session.adverts) == client.share(session.adverts)  # asked again, for the answer was lost
    with pytest.raises(AggregationAborted, match="a second, different question in stage SHARED"):
        client.share(session.adverts[:4])
    for early in (
        lambda client: client.confirm([0, 1, 2, 3, 4]),
        lambda client: client.decide([0, 1, 2, 3, 4], {}),
        lambda client: client.reveal(),
        lambda client: client.sign_masked(b""),
    ):
        with pytest.raises(AggregationAborted, match="this comes in stage"):
            early(Client(session.session, signer(0), Floors()))


def test_a_vector_out_of_range_is_seen_in_the_sum() -> None:
    session = play(5)
    session.run("share")
    session.vectors[signer(1).peer_id][4] = 2**31
    session.mask()
    session.confirm()
    with pytest.raises(RemoteProtocolError, match="out of range"):
        session.session.terms.encoding.decode(session.reveal(), 5)


def test_a_vector_leaves_under_masks_that_hide_it() -> None:
    session = play(5)
    session.run("share")
    client = session.clients[signer(0).peer_id]
    masks = client.receive(session.sharers, session.server.sealed_for(client.me))
    assert len(masks) == 5 and len({mask.secret for mask in masks}) == 5
    for size in (1 << 16, 1):
        words = np.zeros(size, dtype="<u4")
        add_masks(words, masks, client.roster.binding)
        assert (words > session.session.terms.encoding.top).mean() > 0.99


def test_secrets_are_gone_after_the_reveal() -> None:
    session = play(5)
    session.run()
    for client in session.clients.values():
        secrets = (client._share_key, client._mask_key, client._mask_seed, client._own_seed)
        assert not any(map(any, secrets)) and not client._held
        assert "secret" not in repr(client) and digest(session.sent[client.me]).hex() not in repr(client)


def test_floors_name_their_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"min_threshold is 1.0; it must lie in \[0, 1\)"):
        Floors(min_threshold=1.0)
    with pytest.raises(ConfigError, match="sessions_per_hour is -1"):
        Floors(sessions_per_hour=-1)


def test_a_session_is_signed_as_a_whole() -> None:
    base = Session("run", 0, "nonce", "model", terms(5))
    seen = {
        base.statement("share", b"ab", b"c"),
        base.statement("share", b"a", b"bc"),
        base.statement("mask", b"ab", b"c"),
    }
    seen |= {
        replace(base, round=1).statement("share", b"ab", b"c"),
        replace(base, nonce="n").statement("share", b"ab", b"c"),
    }
    assert len(seen) == 5
