"""Statements and proofs, as values: nobody honest is ever convicted, and nobody who can be compared goes free."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses.equivocation import ROUNDS_AHEAD, ROUNDS_BEHIND, Pledge, Proof, Statement, Witness, model_digest
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.signing import IdentitySigner, verify_signed
from p2pfl.errors import JournalError, RemoteProtocolError
from p2pfl.sim.signer import SimulatedSigner

SEATS = 4
SIGNERS = [SimulatedSigner(f"seat{seat:07d}") for seat in range(SEATS)]
VERIFY = SIGNERS[0].verifies
MODELS = [model_digest(bytes([number])) for number in range(3)]


def stated(seat, round, model=0, run="run"):
    return Statement.signed(SIGNERS[seat], run, round, seat, MODELS[model])


def sits(seat):
    return SIGNERS[seat].peer_id if seat < SEATS else None


@pytest.fixture
def witness():
    return Witness("run", sits, VERIFY)


# -- statements and proofs ---------------------------------------------------------------------------------------------


def test_a_digest_is_a_blake2b_of_256_bits_in_a_domain_of_its_own():
    assert (
        model_digest(memoryview(b"abc")) == hashlib.blake2b(b"abc", digest_size=32, person=b"p2pfl-stated").hexdigest()
    )


def test_a_proof_convinces_whoever_has_nothing_but_the_two_statements():
    signer = IdentitySigner(Identity.generate())
    first, second = (Statement.signed(signer, "run", 3, 1, model) for model in MODELS[:2])
    proof = Proof(first, second)
    assert proof.holds(verify_signed)
    assert (proof.round, proof.seat, proof.peer) == (3, 1, signer.peer_id)
    assert not Proof(first, first).holds(verify_signed)


OTHERS = {"run": "walk", "round": 4, "seat": 2, "peer": SIGNERS[3].peer_id, "model": MODELS[2], "signature": "0" * 32}


@pytest.mark.parametrize("field", OTHERS)
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_proof_in_which_anything_was_changed_does_not_hold(which, field):
    proof = Proof(stated(1, 3, 0), stated(1, 3, 1))
    assert proof.holds(VERIFY)
    changed = replace(getattr(proof, which), **{field: OTHERS[field]})
    assert not replace(proof, **{which: changed}).holds(VERIFY)


@pytest.mark.parametrize(
    "other",
    [stated(1, 3), stated(1, 4, 1), stated(2, 3, 1), stated(1, 3, 1, run="walk")],
    ids=lambda each: each.content,
)
def test_two_true_statements_that_agree_or_speak_of_different_things_are_no_proof(other):
    assert other.is_signed(VERIFY)
    assert not Proof(stated(1, 3), other).holds(VERIFY)


@pytest.mark.parametrize("wrong", [{"round": -1}, {"seat": -1}, {"model": ""}, {"model": "0" * 65}])
def test_statements_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        replace(stated(1, 3), **wrong)


# -- a witness ---------------------------------------------------------------------------------------------------------


def test_what_is_new_is_given_back_to_be_passed_on_once(witness):
    first, second = stated(1, 3), stated(1, 3, 1)
    assert [witness.note(each) for each in (first, first, second)] == [first, None, Proof(first, second)]
    assert witness.proofs == {1: Proof(first, second)}
    assert [witness.note(each) for each in (second, first, stated(1, 4))] == [None] * 3, "a convict is not listened to"
    assert list(witness.known()) == [Proof(first, second)]


def test_a_proof_of_somebody_else_is_new_once(witness):
    proof = Proof(stated(1, 3), stated(1, 3, 1))
    assert [witness.convict(each) for each in (proof, proof, Proof(proof.second, proof.first))] == [proof, None, None]
    assert witness.proofs == {1: proof}


def test_what_is_not_signed_or_of_another_run_is_refused_and_convicts_nobody(witness):
    witness.note(stated(1, 3))
    forged = replace(stated(2, 3, 1), seat=1, peer=SIGNERS[1].peer_id)
    for statement in (forged, replace(stated(1, 3), signature=""), stated(1, 3, 1, run="walk")):
        with pytest.raises(RemoteProtocolError, match="not signed, or of another run"):
            witness.note(statement)
    other_run = Proof(stated(1, 3, run="walk"), stated(1, 3, 1, run="walk"))
    for proof in (Proof(stated(1, 3), forged), Proof(stated(1, 3), stated(1, 3)), other_run):
        with pytest.raises(RemoteProtocolError, match="proves nothing"):
            witness.convict(proof)
    assert not witness.proofs


def test_who_sits_nowhere_takes_no_memory_and_nobody_elses_seat(witness):
    stranger = SimulatedSigner("seat0000099")
    claims = [Statement.signed(stranger, "run", 3, seat, model) for seat in (1, 99) for model in MODELS[:2]]
    assert [witness.note(claim) for claim in claims] == [None] * 4
    assert witness.convict(Proof(*claims[:2])) is None
    assert not list(witness.known())
    assert witness.note(stated(1, 3))


rounds = st.integers(0, 2 * ROUNDS_AHEAD)
honest = st.builds(lambda seat, round: stated(seat, round, (seat + round) % 3), st.integers(0, SEATS - 1), rounds)
anything = st.builds(stated, st.integers(0, SEATS - 1), rounds, st.integers(0, 2))
steps = st.lists(st.one_of(honest, st.integers(0, 2 * ROUNDS_AHEAD)), max_size=80)  # a number: the witness is there now


def lived(steps):
    witness = Witness("run", sits, VERIFY)
    for step in steps:
        witness.advance(step) if isinstance(step, int) else witness.note(step)
    return witness


@given(steps)
def test_nobody_honest_is_convicted_whatever_is_late_or_lost_or_told_again(steps):
    assert not lived(steps).proofs


few_rounds = st.integers(0, 3)
lies = st.builds(stated, st.integers(0, SEATS - 1), few_rounds, st.integers(0, 2))
lives = st.lists(st.one_of(lies, few_rounds), max_size=30)


@given(lives, lives)
def test_who_has_told_two_honest_nodes_different_things_is_convicted_by_both_once_they_compare(one, other):
    one, other = lived(one), lived(other)
    kept = [{(s.seat, s.round): s for s in each.known() if isinstance(s, Statement)} for each in (one, other)]
    liars = {key[0] for key in kept[0].keys() & kept[1].keys() if kept[0][key] != kept[1][key]}
    convicted = liars | one.proofs.keys() | other.proofs.keys()
    for source, target in ((one, other), (other, one)):
        for news in list(source.known()):
            target.convict(news) if isinstance(news, Proof) else target.note(news)
    assert one.proofs.keys() == other.proofs.keys() == convicted
    assert all(proof.holds(VERIFY) for proof in one.proofs.values())


@given(st.lists(st.one_of(anything, rounds), max_size=80))
def test_a_witness_keeps_a_window_of_rounds(steps):
    witness = Witness("run", sits, VERIFY)
    now = 0
    for step in steps:
        if isinstance(step, int):
            witness.advance(now := step)
        else:
            witness.note(step)
        kept = [each for each in witness.known() if isinstance(each, Statement)]
        assert all(now - ROUNDS_BEHIND <= each.round <= now + ROUNDS_AHEAD for each in kept)
        assert len({(each.seat, each.round) for each in kept}) == len(kept)
        assert not {each.seat for each in kept} & witness.proofs.keys()


# -- a pledge ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(MODELS), st.booleans()), max_size=40))
def test_who_keeps_a_pledge_states_one_model_for_each_round_in_all_its_lives(asks):
    pledge, said = Pledge(), {}
    for round, model, restarted in asks:
        if restarted:
            pledge = Pledge.restored(pledge.state())
        if pledge.permits(round, model):
            pledge = Pledge(round, model)
            assert said.setdefault(round, model) == model


def test_a_pledge_permits_what_comes_later_and_the_last_thing_again():
    pledge = Pledge(3, MODELS[0])
    assert pledge.permits(3, MODELS[0]) and pledge.permits(4, MODELS[1])
    assert not pledge.permits(3, MODELS[1]) and not pledge.permits(2, MODELS[0])
    assert Pledge().permits(0, MODELS[0])


@pytest.mark.parametrize("state", [{}, {"round": 3}, {"round": "three", "model": ""}])
def test_what_is_no_pledge_is_said_to_be_none(state):
    with pytest.raises(JournalError, match="not what a node has pledged"):
        Pledge.restored(state)
