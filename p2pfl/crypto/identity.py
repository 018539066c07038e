"""Who a node is: an Ed25519 key pair whose public half gives the peer id; and the key that a closed network shares."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from struct import Struct

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_pwhash_alg,
    crypto_pwhash_ALG_ARGON2ID13,
    crypto_pwhash_argon2id_MEMLIMIT_MODERATE,
    crypto_pwhash_argon2id_OPSLIMIT_MODERATE,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from p2pfl.crypto.keyfile import read_secret, write_secret
from p2pfl.crypto.noise import KeyPair
from p2pfl.errors import IdentityError

__all__ = ["Identity", "NetworkKey", "Succession", "is_peer_id", "peer_id_of", "short_id", "verify"]

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_PEER_ID = re.compile(r"[a-z2-7]{51}[aq]")  # 256 bits in base32: the last letter carries one bit
_SUCCESSION = b"p2pfl successor v1"

_SEALED_MAGIC = b"p2pfl sealed id\n"
_SEALED = Struct("<16sQQ16s24s")  # magic, Argon2id operations and bytes of memory, salt, nonce; then the sealed seed
_MAX_OPERATIONS = 16
_MAX_MEMORY = 1 << 30  # the figures come from a file: a damaged one must not ask for all memory


def peer_id_of(public_key: bytes) -> str:
    """The peer id of an Ed25519 public key (32 bytes): 52 lower-case base32 characters of its BLAKE2b-256 hash."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    digest = hashlib.blake2b(public_key, digest_size=32, person=b"p2pfl-peer-id-v1").digest()
    return base64.b32encode(digest).decode().rstrip("=").lower()


def is_peer_id(text: str) -> bool:
    """Whether `text` is a whole peer id, as `peer_id_of` writes it.

    >>> is_peer_id("q2345")
    False
    """
    return _PEER_ID.fullmatch(text) is not None


def short_id(peer_id: str) -> str:
    """The first ten characters: to be shown, never to be compared."""
    return peer_id[:10]


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) on `message` was made by the owner of `public_key` (32 bytes)."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except CryptoError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Succession:
    """The statement of one key that another takes its place: how a node changes its key without losing its pins."""

    old_key: bytes
    new_key: bytes
    signature: bytes

    @property
    def valid(self) -> bool:
        """Whether the old key did sign it."""
        return verify(self.old_key, _SUCCESSION + self.new_key, self.signature)

    def __repr__(self) -> str:
        return f"<Succession {short_id(peer_id_of(self.old_key))} -> {short_id(peer_id_of(self.new_key))}>"


class Identity:
    """An Ed25519 key pair. Equal if the public keys are."""

    def __init__(self, seed: bytes) -> None:
        """From the 32 secret bytes; see `generate`, `load` and `load_or_create` for the usual ways."""
        if len(seed) != SEED_BYTES:
            raise IdentityError(f"identity: a seed has {SEED_BYTES} bytes, not {len(seed)}: give the whole seed")
        self._seed = bytes(seed)
        self.public_key, self._secret_key = crypto_sign_seed_keypair(self._seed)
        self.peer_id = peer_id_of(self.public_key)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity, not saved."""
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of 32 secret bytes: the same seed, the same peer id."""
        return cls(seed)

    @classmethod
    def load(cls, path: str | Path, passphrase: str | None = None) -> Identity:
        """Read a key file. Raises IdentityError if it is missing, open to others, damaged, or sealed otherwise."""
        path = Path(path)
        data = read_secret(path, "identity")
        sealed = data.startswith(_SEALED_MAGIC) and len(data) > SEED_BYTES
        if sealed and passphrase is None:
            raise IdentityError(f"identity: {path} is sealed: give its passphrase")
        if sealed:
            data = _unseal(data, passphrase or "", path)
        elif passphrase is not None:
            raise IdentityError(f"identity: {path} is not sealed: leave out the passphrase, or save it with one")
        if len(data) != SEED_BYTES:
            raise IdentityError(
                f"identity: {path} is damaged ({len(data)} bytes, not {SEED_BYTES}): restore it from a copy, "
                "or move it away to become a new peer"
            )
        return cls(data)

    @classmethod
    def load_or_create(cls, path: str | Path, passphrase: str | None = None) -> Identity:
        """`load`, after making a new identity there if there is no file. Two processes that do so get the same one."""
        path = Path(path)
        if not path.exists():
            created = cls.generate()
            try:
                created.save(path, passphrase)
            except IdentityError:
                if not path.exists():  # else another process was faster, and its identity is ours too
                    raise
            else:
                return created
        return cls.load(path, passphrase)

    def save(self, path: str | Path, passphrase: str | None = None, *, replace: bool = False) -> None:
        """Write the key file (mode 0600); with a passphrase, sealed under an Argon2id key (costs 256 MiB and a second).

        Raises IdentityError if it cannot be written, or is there already and not to be replaced.
        """
        data = self._seed if passphrase is None else _seal(self._seed, passphrase)
        write_secret(Path(path), data, "identity", replace=replace)

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature (64 bytes). Begin `message` with a tag of its purpose: one key signs many things."""
        return bytes(crypto_sign(message, self._secret_key)[:SIGNATURE_BYTES])

    def succeeded_by(self, successor: Identity) -> Succession:
        """Our statement that `successor` takes our place."""
        return Succession(self.public_key, successor.public_key, self.sign(_SUCCESSION + successor.public_key))

    @cached_property
    def noise_static(self) -> KeyPair:
        """The X25519 key of this process for handshakes: drawn at first use, never stored."""
        return KeyPair()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.public_key == other.public_key

    def __hash__(self) -> int:
        return hash(self.public_key)

    def __reduce__(self) -> str:
        raise TypeError("an identity is not pickled or copied: it would carry the secret key along")

    def __repr__(self) -> str:
        return f"<Identity {short_id(self.peer_id)}>"


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """32 secret bytes that every node of a closed network holds. Never sent: it goes into the handshake's keys."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise IdentityError(f"network key: it has 32 bytes, not {len(self.secret)}: copy the whole of it")

    @classmethod
    def generate(cls) -> NetworkKey:
        """A new key."""
        return cls(os.urandom(32))

    @classmethod
    def parse(cls, text: str) -> NetworkKey:
        """From 64 hexadecimal digits or from base64. Raises IdentityError; the text is not repeated in the error."""
        text = text.strip()
        try:
            return cls(bytes.fromhex(text) if len(text) == 64 else base64.b64decode(text, validate=True))
        except ValueError:
            raise IdentityError("network key: neither 64 hexadecimal digits nor base64: copy the whole of it") from None

    @classmethod
    def load(cls, path: str | Path) -> NetworkKey:
        """Read a key file: one line, as `parse` takes it. Raises IdentityError as `Identity.load` does."""
        return cls.parse(read_secret(Path(path), "network key").decode("ascii", "replace"))

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write one line of hexadecimal digits (mode 0600). Raises IdentityError as `Identity.save` does."""
        write_secret(Path(path), self.secret.hex().encode() + b"\n", "network key", replace=replace)

    @property
    def psks(self) -> tuple[bytes, bytes]:
        """psk0 and psk3 of the handshake."""
        return self._derive(b"p2pfl psk0"), self._derive(b"p2pfl psk3")

    def _derive(self, purpose: bytes) -> bytes:
        return hashlib.blake2b(purpose, digest_size=32, key=self.secret).digest()


def _seal(seed: bytes, passphrase: str) -> bytes:
    operations, memory = crypto_pwhash_argon2id_OPSLIMIT_MODERATE, crypto_pwhash_argon2id_MEMLIMIT_MODERATE
    salt, nonce = os.urandom(16), os.urandom(24)
    head = _SEALED.pack(_SEALED_MAGIC, operations, memory, salt, nonce)
    key = _stretch(passphrase, salt, operations, memory)
    return head + bytes(crypto_aead_xchacha20poly1305_ietf_encrypt(seed, head, nonce, key))


def _unseal(data: bytes, passphrase: str, path: Path) -> bytes:
    head, sealed = data[: _SEALED.size], data[_SEALED.size :]
    if len(head) < _SEALED.size or len(sealed) != SEED_BYTES + 16:
        raise IdentityError(f"identity: {path} is damaged ({len(data)} bytes): restore it from a copy")
    _, operations, memory, salt, nonce = _SEALED.unpack(head)
    if operations > _MAX_OPERATIONS or memory > _MAX_MEMORY:
        raise IdentityError(f"identity: {path} is damaged (its Argon2id figures are absurd): restore it from a copy")
    try:
        key = _stretch(passphrase, salt, operations, memory)
        return bytes(crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, head, nonce, key))
    except CryptoError as error:
        raise IdentityError(
            f"identity: {path} does not open: give its passphrase, or restore it from a copy"
        ) from error


def _stretch(passphrase: str, salt: bytes, operations: int, memory: int) -> bytes:
    return bytes(crypto_pwhash_alg(32, passphrase.encode(), salt, operations, memory, crypto_pwhash_ALG_ARGON2ID13))
