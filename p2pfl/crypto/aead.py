"""The two ciphers of the Noise handshake, sealing and opening in place.

Why libsodium is called below PyNaCl's public wrappers: those take and return `bytes` only, so that every record is
copied five times on its way (slice, join, zero-filled output, copy out, join again). Here the output lands where the
caller wants it. `tests/crypto/test_aead.py` pins that both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

import nacl.bindings  # noqa: F401 - importing it initialises libsodium, which is what detects AES instructions
from nacl._sodium import ffi, lib

from p2pfl.errors import LinkError, RemoteProtocolError

__all__ = ["AESGCM", "CHACHAPOLY", "KEY_BYTES", "TAG_BYTES", "Aead", "Buffer", "aes_available"]

Buffer = bytes | bytearray | memoryview

KEY_BYTES = 32
TAG_BYTES = 16

_NULL = ffi.NULL


def aes_available() -> bool:
    """Whether this processor has the AES and carry-less multiplication instructions that AES-GCM needs here."""
    return bool(lib.crypto_aead_aes256gcm_is_available())


@dataclass(frozen=True, slots=True, repr=False)
class Aead:
    """A cipher of Noise: a 32-byte key, a 64-bit counter as the nonce, a 16-byte tag at the end of the ciphertext."""

    name: str  # as in Noise protocol names
    _nonce: Struct
    _encrypt: Callable[..., int]
    _decrypt: Callable[..., int]

    def seal_into(self, key: bytes, counter: int, ad: bytes, plain: Buffer, out: bytearray | memoryview) -> None:
        """Encrypt `plain` into `out`, which is just TAG_BYTES longer. `out` may begin where `plain` does."""
        source: Any = ffi.from_buffer(plain)
        target: Any = ffi.from_buffer(out, require_writable=True)
        size = len(source)
        # libsodium trusts its caller about sizes: these checks are what keeps memory safe
        if len(key) != KEY_BYTES or len(target) != size + TAG_BYTES:
            raise ValueError("a key of 32 bytes, and an output 16 bytes longer than the input")
        if self._encrypt(target, _NULL, source, size, ad, len(ad), _NULL, self._nonce.pack(counter), key) != 0:
            raise LinkError(f"this processor cannot do {self.name}")  # and `out` may hold what was to be hidden

    def open_into(self, key: bytes, counter: int, ad: bytes, sealed: Buffer, out: bytearray | memoryview) -> None:
        """Verify and decrypt `sealed` into `out`, which is just TAG_BYTES shorter. `out` may begin where `sealed` does.

        Raises RemoteProtocolError if the bytes are not what was sealed; `out` then shows nothing of the plaintext.
        """
        source: Any = ffi.from_buffer(sealed)
        target: Any = ffi.from_buffer(out, require_writable=True)
        size = len(source)
        if len(key) != KEY_BYTES or size < TAG_BYTES or len(target) != size - TAG_BYTES:
            raise ValueError("a key of 32 bytes, and an output 16 bytes shorter than the input")
        if self._decrypt(target, _NULL, _NULL, source, size, ad, len(ad), self._nonce.pack(counter), key) != 0:
            raise RemoteProtocolError("bytes were changed, dropped or repeated: they do not decrypt")

    def seal(self, key: bytes, counter: int, ad: bytes, plain: Buffer) -> bytes:
        """`seal_into` a fresh buffer."""
        out = bytearray(len(plain) + TAG_BYTES)
        self.seal_into(key, counter, ad, plain, out)
        return bytes(out)

    def open(self, key: bytes, counter: int, ad: bytes, sealed: Buffer) -> bytes:
        """`open_into` a fresh buffer. Raises RemoteProtocolError."""
        if len(sealed) < TAG_BYTES:
            raise RemoteProtocolError("bytes are missing: there is no room for a tag")
        out = bytearray(len(sealed) - TAG_BYTES)
        self.open_into(key, counter, ad, sealed, out)
        return bytes(out)

    def __repr__(self) -> str:
        return f"<Aead {self.name}>"


AESGCM = Aead(
    "AESGCM",
    Struct(">4xQ"),  # Noise rev. 34, section 12.4: big-endian here ...
    lib.crypto_aead_aes256gcm_encrypt,
    lib.crypto_aead_aes256gcm_decrypt,
)
CHACHAPOLY = Aead(
    "ChaChaPoly",
    Struct("<4xQ"),  # ... and little-endian there (12.3)
    lib.crypto_aead_chacha20poly1305_ietf_encrypt,
    lib.crypto_aead_chacha20poly1305_ietf_decrypt,
)
