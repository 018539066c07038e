"""Keys that two nodes agree on, and the masks that grow from them: one seed for each chunk, as ChaCha20 streams.

Two nodes that have seen the same session, model and tensors get the same masks, and no others do: all of that is in
the derivation of every seed (see `Binding`). A chunk has 2^16 entries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base
from nacl.exceptions import CryptoError

from p2pfl.crypto.aead import CHACHAPOLY, KEY_BYTES
from p2pfl.crypto.drg import SEED_BYTES, random_stream
from p2pfl.crypto.noise import hkdf
from p2pfl.crypto.shares import PRIME
from p2pfl.errors import RemoteProtocolError

__all__ = [
    "CHUNK_ENTRIES", "SCALAR_BYTES", "Binding", "agree", "commitment", "field_element", "mask_key", "open_sealed",
    "public_of", "seal", "stream",
]  # fmt: skip

CHUNK_ENTRIES = 1 << 16
SCALAR_BYTES = 32  # of an element of the field, little-endian
_DRAWN_BYTES = 48  # 128 bits more than the field has: what is left after the division is uniform to 2^-128
_SALT = b"p2pfl secagg v1"


@dataclass(frozen=True, slots=True)
class Binding:
    """What the masks of a session are for, so that they cancel out among those only who agree on all of it."""

    session: bytes  # the hash of the whole signed list of who takes part
    model: str  # the hash of the model that all trained from
    schema: str  # what the tensors are


def field_element(drawn: bytes) -> int:
    """A uniformly random element of the field, of 48 random bytes."""
    if len(drawn) != _DRAWN_BYTES:
        raise ValueError(f"an element of the field takes {_DRAWN_BYTES} random bytes, not {len(drawn)}")
    return int.from_bytes(drawn, "little") % PRIME


def mask_key(seed: int) -> bytes:
    """The X25519 private key (32 bytes) that belongs to a shared seed."""
    return hkdf(_SALT, seed.to_bytes(SCALAR_BYTES, "little"), b"mask-sk", KEY_BYTES)


def public_of(private: bytes | bytearray) -> bytes:
    """The X25519 public key (32 bytes) of a private one."""
    return bytes(crypto_scalarmult_base(bytes(private)))


def commitment(seed: int) -> bytes:
    """32 bytes that only this seed has, and that do not tell it."""
    return hashlib.sha256(_SALT + b"\0commitment\0" + seed.to_bytes(SCALAR_BYTES, "little")).digest()


def agree(private: bytes | bytearray, public: bytes) -> bytes:
    """The X25519 secret (32 bytes) of two nodes. Raises RemoteProtocolError for a key of low order."""
    try:
        return bytes(crypto_scalarmult(bytes(private), public))
    except CryptoError as error:
        raise RemoteProtocolError("a public key of low order came") from error


def seal(secret: bytes, session: bytes, sender: str, receiver: str, plain: bytes) -> bytes:
    """Encrypt for one receiver in one session, with 16 bytes more. Once for each: the nonce is 0."""
    route = _route(session, sender, receiver)
    return CHACHAPOLY.seal(hkdf(_SALT, secret, b"share-key" + route, KEY_BYTES), 0, route, plain)


def open_sealed(secret: bytes, session: bytes, sender: str, receiver: str, sealed: bytes) -> bytes:
    """What was sealed. Raises RemoteProtocolError for anything else, and for what was sealed for another route."""
    route = _route(session, sender, receiver)
    return CHACHAPOLY.open(hkdf(_SALT, secret, b"share-key" + route, KEY_BYTES), 0, route, sealed)


def stream(secret: bytes, binding: Binding, chunk: int, size: int) -> bytes:
    """`size` bytes of the mask of one chunk. `secret`: of two nodes, or a seed of one, 32 bytes."""
    info = b"\0".join((b"mask-seed", binding.session, binding.model.encode(), binding.schema.encode()))
    return random_stream(hkdf(_SALT, secret, info + chunk.to_bytes(8, "little"), SEED_BYTES), size)


def _route(session: bytes, sender: str, receiver: str) -> bytes:
    return b"\0".join((session, sender.encode(), receiver.encode()))  # ids have no zeros, and a session a fixed length
