"""Statements that outlive a link: signed by one node, shown to others by a third."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from typing import Protocol

from p2pfl.crypto.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, peer_id_of, verify

__all__ = ["IdentitySigner", "Signer", "verify_signed"]

_TEXT_CHARACTERS = (PUBLIC_KEY_BYTES + SIGNATURE_BYTES) * 4 // 3  # base64 without padding


class Signer(Protocol):
    """Signs as one node, draws its secrets, and tells whether others have signed.

    Nodes that check each other have signers of one kind.
    """

    @property
    def peer_id(self) -> str:
        """Who we are."""

    def sign(self, statement: bytes) -> str:
        """Our signature. Begin `statement` with a tag of its purpose: one key signs many things."""

    def verifies(self, peer_id: str, statement: bytes, signature: str) -> bool:
        """Whether the node of that id made this signature on this statement."""

    def draw(self, size: int) -> bytes:
        """So many random bytes that nobody else knows, and that never come again."""


@dataclass(frozen=True, slots=True)
class IdentitySigner:
    """Signs with a node's Ed25519 key. The public key goes along: whoever knows a peer id can check a signature."""

    identity: Identity

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id

    def sign(self, statement: bytes) -> str:
        """128 characters of URL-safe base64: the public key, then the signature."""
        return base64.urlsafe_b64encode(self.identity.public_key + self.identity.sign(statement)).decode()

    def verifies(self, peer_id: str, statement: bytes, signature: str) -> bool:
        """See `verify_signed`."""
        return verify_signed(peer_id, statement, signature)

    def draw(self, size: int) -> bytes:
        """Of the operating system, always."""
        return os.urandom(size)


def verify_signed(peer_id: str, statement: bytes, signature: str) -> bool:
    """Whether the Ed25519 key that `peer_id` is the hash of made this signature."""
    if len(signature) != _TEXT_CHARACTERS:
        return False
    try:
        content = base64.b64decode(signature, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return False
    public_key = content[:PUBLIC_KEY_BYTES]
    return peer_id_of(public_key) == peer_id and verify(public_key, statement, content[PUBLIC_KEY_BYTES:])
