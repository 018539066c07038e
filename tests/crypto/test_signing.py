import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto.identity import Identity
from p2pfl.crypto.signing import IdentitySigner, verify_signed

ALICE = IdentitySigner(Identity.from_seed(bytes(range(32))))
BOB = IdentitySigner(Identity.from_seed(bytes(32)))


def test_who_knows_the_peer_id_can_check_a_signature():
    signature = ALICE.sign(b"round 7")
    assert verify_signed(ALICE.peer_id, b"round 7", signature)
    assert BOB.verifies(ALICE.peer_id, b"round 7", signature)
    assert ALICE.peer_id == ALICE.identity.peer_id


def test_it_carries_the_public_key_and_the_signature():
    content = base64.urlsafe_b64decode(ALICE.sign(b"x"))
    assert content == ALICE.identity.public_key + ALICE.identity.sign(b"x")


def test_another_statement_or_another_peer_is_not_signed():
    signature = ALICE.sign(b"round 7")
    assert not verify_signed(ALICE.peer_id, b"round 8", signature)
    assert not verify_signed(BOB.peer_id, b"round 7", signature)


def test_the_key_of_one_with_the_signature_of_another_is_refused():
    mixed = ALICE.identity.public_key + BOB.identity.sign(b"x")
    assert not verify_signed(ALICE.peer_id, b"x", base64.urlsafe_b64encode(mixed).decode())


@pytest.mark.parametrize(
    "signature", ["", "é" * 128, "!" * 128, "A" * 128, "A" * 127, "A" * 132, "=" * 128, "\0" * 128]
)
def test_garbage_is_refused(signature):
    assert not verify_signed(ALICE.peer_id, b"x", signature)


@given(st.integers(0, 127), st.characters(codec="utf-8"))
def test_every_character_counts(place, character):
    signature = ALICE.sign(b"x")
    altered = signature[:place] + character + signature[place + 1 :]
    assert verify_signed(ALICE.peer_id, b"x", altered) is (altered == signature)


@given(st.text(max_size=130))
def test_any_text_is_taken(signature):
    assert not verify_signed(ALICE.peer_id, b"x", signature)


def test_secrets_are_those_of_the_operating_system(monkeypatch):
    signer = IdentitySigner(Identity.from_seed(bytes(32)))
    assert signer.draw(32) != signer.draw(32) and len(signer.draw(48)) == 48
    monkeypatch.setattr("os.urandom", lambda size: b"x" * size)
    assert signer.draw(3) == b"xxx"
