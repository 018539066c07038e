import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto.drg import random_stream
from p2pfl.crypto.masks import (
    Binding,
    agree,
    commitment,
    field_element,
    mask_key,
    open_sealed,
    public_of,
    seal,
    stream,
)  # fmt: skip
from p2pfl.crypto.shares import PRIME
from p2pfl.errors import RemoteProtocolError

BINDING = Binding(b"s" * 32, "model", "schema")
SECRET = bytes(range(32))


def test_two_agree_as_x25519_does() -> None:
    x25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.x25519", reason="needs the oracle extra")
    mine, theirs = bytes(range(32)), bytes(range(32, 64))
    oracle = x25519.X25519PrivateKey.from_private_bytes(mine).exchange(
        x25519.X25519PublicKey.from_public_bytes(public_of(theirs))
    )
    assert agree(mine, public_of(theirs)) == oracle == agree(theirs, public_of(mine))


def test_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="low order"):
        agree(SECRET, bytes(32))


def test_a_stream_is_that_of_the_key_that_hkdf_derives() -> None:
    """By hand, from RFC 5869."""
    info = b"mask-seed\0" + b"s" * 32 + b"\0model\0schema" + (3).to_bytes(8, "little") + b"\1"
    key = hmac.digest(hmac.digest(b"p2pfl secagg v1", SECRET, hashlib.sha256), info, hashlib.sha256)
    assert stream(SECRET, BINDING, 3, 100) == random_stream(key, 100)


@pytest.mark.parametrize(
    "other",
    [
        Binding(b"t" * 32, "model", "schema"),
        Binding(b"s" * 32, "Model", "schema"),
        Binding(b"s" * 32, "model", "other"),
    ],
    ids=["session", "model", "schema"],
)
def test_every_word_differs_where_one_thing_does(other: Binding) -> None:
    """Keys that are used again in another session, for another model or other tensors, give masks without likeness."""
    size = 8 * 4096
    mask = stream(SECRET, BINDING, 0, size)
    for changed in (
        stream(SECRET, other, 0, size),
        stream(SECRET, BINDING, 1, size),
        stream(bytes(32), BINDING, 0, size),
    ):
        assert all(mask[at : at + 8] != changed[at : at + 8] for at in range(0, size, 8))


@given(st.binary(max_size=80))
def test_what_is_sealed_opens_on_its_own_route_only(plain: bytes) -> None:
    sealed = seal(SECRET, b"s" * 32, "u", "v", plain)
    assert len(sealed) == len(plain) + 16
    assert open_sealed(SECRET, b"s" * 32, "u", "v", sealed) == plain
    for session, sender, receiver in (
        (b"t" * 32, "u", "v"),
        (b"s" * 32, "v", "u"),
        (b"s" * 32, "u", "w"),
        (b"s" * 32, "w", "v"),
    ):
        with pytest.raises(RemoteProtocolError):
            open_sealed(SECRET, session, sender, receiver, sealed)
    with pytest.raises(RemoteProtocolError):
        open_sealed(bytes(32), b"s" * 32, "u", "v", sealed)


def test_every_changed_byte_is_noticed() -> None:
    sealed = seal(SECRET, b"s" * 32, "u", "v", b"shares")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(RemoteProtocolError):
            open_sealed(SECRET, b"s" * 32, "u", "v", changed)


def test_elements_of_the_field() -> None:
    assert field_element(bytes(48)) == 0
    assert field_element(PRIME.to_bytes(48, "little")) == 0
    assert field_element(b"\xff" * 48) == (2**384 - 1) % PRIME
    with pytest.raises(ValueError, match="48 random bytes, not 32"):
        field_element(SECRET)


def test_keys_and_commitments_belong_to_their_seed() -> None:
    assert mask_key(5) != mask_key(6) and len(mask_key(5)) == 32
    assert commitment(5) != commitment(6) and commitment(5) != hashlib.sha256((5).to_bytes(32, "little")).digest()
