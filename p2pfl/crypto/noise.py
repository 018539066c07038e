"""The Noise handshake: Trevor Perrin, "The Noise Protocol Framework", revision 34, https://noiseprotocol.org/noise.html.

Patterns XX, XXpsk3 and XXpsk0+psk3 over X25519 and SHA-256 with either cipher of `aead`. The names of classes,
methods and variables are those of the specification (section 5), so that the two can be read side by side. One thing
is added: a payload may be a function of the handshake hash as it stands before the payload, which is how an identity
signs the session it is in.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from functools import cached_property

from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base
from nacl.exceptions import CryptoError

from p2pfl.crypto.aead import KEY_BYTES, TAG_BYTES, Aead, Buffer
from p2pfl.errors import HandshakeFailed, LinkError, RemoteProtocolError

__all__ = ["PATTERNS", "CipherState", "HandshakeState", "KeyPair", "Payload", "SymmetricState", "dh", "hkdf"]

DH_BYTES = 32
HASH_BYTES = 32
MAX_NONCE = 2**64 - 1

PATTERNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "XX": (("e",), ("e", "ee", "s", "es"), ("s", "se")),
    "XXpsk3": (("e",), ("e", "ee", "s", "es"), ("s", "se", "psk")),
    "XXpsk0+psk3": (("psk", "e"), ("e", "ee", "s", "es"), ("s", "se", "psk")),
}

Payload = bytes | Callable[[bytes], bytes]


def hkdf(salt: bytes, key_material: bytes, info: bytes, size: int) -> bytes:
    """HKDF-SHA-256 (RFC 5869), at most 8160 bytes. Noise's HKDF(ck, x, n) is `hkdf(ck, x, b"", 32 * n)`."""
    if size > 255 * HASH_BYTES:
        raise ValueError(f"HKDF-SHA-256 gives at most {255 * HASH_BYTES} bytes, not {size}")
    pseudo_random_key = hmac.digest(salt, key_material, "sha256")
    out = block = b""
    for index in range(1, -(-size // HASH_BYTES) + 1):
        block = hmac.digest(pseudo_random_key, block + info + bytes([index]), "sha256")
        out += block
    return out[:size]


def dh(private: bytes, public: bytes) -> bytes:
    """X25519. Raises HandshakeFailed for a public key of low order, whose result is zero whatever our key is."""
    try:
        return bytes(crypto_scalarmult(private, public))
    except CryptoError as error:
        raise HandshakeFailed("the other end sent a public key of low order") from error


class KeyPair:
    """An X25519 key pair. The public half is computed when first asked for: an outsider must not cost us that."""

    def __init__(self, private: bytes | None = None) -> None:
        self.private = private or os.urandom(DH_BYTES)

    @cached_property
    def public(self) -> bytes:
        """32 bytes."""
        return bytes(crypto_scalarmult_base(self.private))

    def __repr__(self) -> str:
        return "<KeyPair>"


class CipherState:
    """A key and a counter that never goes back."""

    __slots__ = ("aead", "k", "n")

    def __init__(self, aead: Aead, k: bytes | None = None) -> None:
        self.aead = aead
        self.k = k
        self.n = 0

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """ENCRYPT and count; the plaintext itself while there is no key."""
        if self.k is None:
            return plaintext
        sealed = self.aead.seal(self.k, self._nonce(), ad, plaintext)
        self.n += 1
        return sealed

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """DECRYPT and count. Raises RemoteProtocolError and does not count if the bytes are not authentic."""
        if self.k is None:
            return ciphertext
        plain = self.aead.open(self.k, self._nonce(), ad, ciphertext)
        self.n += 1
        return plain

    def seal_into(self, plain: Buffer, out: bytearray | memoryview) -> None:
        """`encrypt_with_ad(b"", ...)` of a transport message into `out` (16 bytes longer), in place if they overlap."""
        self.aead.seal_into(self._key(), self._nonce(), b"", plain, out)
        self.n += 1

    def open_into(self, sealed: Buffer, out: bytearray | memoryview) -> None:
        """`decrypt_with_ad(b"", ...)` of a transport message into `out` (16 bytes shorter). Raises as that does."""
        self.aead.open_into(self._key(), self._nonce(), b"", sealed, out)
        self.n += 1

    def rekey(self) -> None:
        """Put a new key, from which the old one cannot be found, in place of the key. The counter goes on."""
        self.k = self.aead.seal(self._key(), MAX_NONCE, b"", bytes(KEY_BYTES))[:KEY_BYTES]

    def _key(self) -> bytes:
        if self.k is None:
            raise ValueError("there is no key yet")
        return self.k

    def _nonce(self) -> int:
        if self.n >= MAX_NONCE:
            raise LinkError("the channel has used up its nonces: dial again")
        return self.n

    def __repr__(self) -> str:
        return f"<CipherState {self.aead.name}, n={self.n}>"


class SymmetricState:
    """The chaining key, the handshake hash and the cipher of the moment."""

    __slots__ = ("cipher", "ck", "h")

    def __init__(self, protocol_name: bytes, aead: Aead) -> None:
        named = protocol_name.ljust(HASH_BYTES, b"\0")
        self.h = named if len(named) == HASH_BYTES else hashlib.sha256(named).digest()
        self.ck = self.h
        self.cipher = CipherState(aead)

    def mix_key(self, key_material: bytes) -> None:
        out = hkdf(self.ck, key_material, b"", 2 * HASH_BYTES)
        self.ck = out[:32]
        self.cipher = CipherState(self.cipher.aead, out[32:])

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    def mix_key_and_hash(self, key_material: bytes) -> None:
        out = hkdf(self.ck, key_material, b"", 3 * HASH_BYTES)
        self.ck = out[:32]
        self.mix_hash(out[32:64])
        self.cipher = CipherState(self.cipher.aead, out[64:])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self.cipher.encrypt_with_ad(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self.cipher.decrypt_with_ad(self.h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        out = hkdf(self.ck, b"", b"", 2 * HASH_BYTES)
        return CipherState(self.cipher.aead, out[:32]), CipherState(self.cipher.aead, out[32:])

    def __repr__(self) -> str:
        return "<SymmetricState>"


class HandshakeState:
    """One end of one handshake. After any exception it is dead: every later call raises HandshakeFailed."""

    def __init__(
        self,
        pattern: str,
        aead: Aead,
        *,
        initiator: bool,
        prologue: bytes,
        s: KeyPair,
        psks: Sequence[bytes] = (),
        e: KeyPair | None = None,
    ) -> None:
        """`s` is our static key; `psks` as many 32-byte keys as the pattern has "psk"; `e` is given by tests only."""
        self.protocol_name = f"Noise_{pattern}_25519_{aead.name}_SHA256"
        self._tokens = list(PATTERNS[pattern])
        self._psks = list(psks)
        self._psk_mode = bool(psks)
        if len(psks) != sum(turn.count("psk") for turn in self._tokens) or any(len(psk) != KEY_BYTES for psk in psks):
            raise ValueError(f"{pattern} takes another number of pre-shared keys, or keys of 32 bytes")
        self.initiator = initiator
        self.s = s
        self.e = e or KeyPair()
        self.re = b""
        self.rs = b""  # the static public key of the other end, once received
        self.payload_hash = b""  # the handshake hash as it stood before the latest payload
        self._my_turn = initiator
        self._alive = True
        self._symmetric = SymmetricState(self.protocol_name.encode(), aead)
        self._symmetric.mix_hash(prologue)

    @property
    def finished(self) -> bool:
        """Whether all messages went through, so that `split` may be called."""
        return self._alive and not self._tokens

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes; once finished, unique to this session and equal at both ends (channel binding, section 11.2)."""
        return self._symmetric.h

    def write_message(self, payload: Payload = b"") -> bytes:
        """Our next message. A `payload` that is a function is called with the hash that it may sign."""
        message = b""
        for token in self._begin(my_turn=True):
            if token == "e":
                message += self.e.public
                self._mix_ephemeral(self.e.public)
            elif token == "s":
                message += self._symmetric.encrypt_and_hash(self.s.public)
            else:
                self._mix(token)
        self.payload_hash = self._symmetric.h
        if callable(payload):
            payload = payload(self.payload_hash)
        message += self._symmetric.encrypt_and_hash(payload)
        self._end()
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the other end's next message. Raises HandshakeFailed."""
        rest = message
        try:
            for token in self._begin(my_turn=False):
                if token == "e":
                    self.re, rest = _cut(rest, DH_BYTES)
                    self._mix_ephemeral(self.re)
                elif token == "s":
                    sealed, rest = _cut(rest, DH_BYTES + (TAG_BYTES if self._symmetric.cipher.k else 0))
                    self.rs = self._symmetric.decrypt_and_hash(sealed)
                else:
                    self._mix(token)
            self.payload_hash = self._symmetric.h
            payload = self._symmetric.decrypt_and_hash(rest)
        except RemoteProtocolError as error:
            raise HandshakeFailed("a handshake message does not decrypt") from error
        self._end()
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The ciphers for what we send and for what we receive."""
        if not self.finished:
            raise HandshakeFailed("the handshake is not over")
        first, second = self._symmetric.split()
        return (first, second) if self.initiator else (second, first)

    def _begin(self, *, my_turn: bool) -> tuple[str, ...]:
        if not self._alive or not self._tokens or my_turn is not self._my_turn:
            raise HandshakeFailed("a handshake message out of turn, or after a failure")
        self._alive = False  # until _end: whatever is raised in between is final
        return self._tokens.pop(0)

    def _end(self) -> None:
        self._my_turn = not self._my_turn
        self._alive = True

    def _mix_ephemeral(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        if self._psk_mode:
            self._symmetric.mix_key(public)

    def _mix(self, token: str) -> None:
        if token == "psk":
            self._symmetric.mix_key_and_hash(self._psks.pop(0))
        elif token == "ee":
            self._symmetric.mix_key(dh(self.e.private, self.re))
        elif (token == "es") is self.initiator:
            self._symmetric.mix_key(dh(self.e.private, self.rs))
        else:
            self._symmetric.mix_key(dh(self.s.private, self.re))

    def __repr__(self) -> str:
        role = "initiator" if self.initiator else "responder"
        return f"<HandshakeState {self.protocol_name}, {role}, {len(self._tokens)} messages to go>"


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeFailed("a handshake message is too short")
    return data[:size], data[size:]
