"""Signatures and secrets of simulated nodes, whose ids are no keys. They show who did what, and protect from nobody."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from itertools import count

from p2pfl.crypto.drg import random_stream

__all__ = ["SimulatedSigner"]

_SIMULATED_ID = re.compile(r"seat\d{7,}")  # as the Register gives them; no hash of a key looks like that


@dataclass(frozen=True, slots=True)
class SimulatedSigner:
    """A Signer for an id that a Register has given. A signature costs a microsecond, and is the same in every run.

    Raises ValueError for any other id: it never stands in for a key.
    """

    peer_id: str
    life: str = ""
    """What its secrets grow from: another text for each world, and each time that the node begins to live in it."""
    _drawn: count[int] = field(default_factory=count, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _SIMULATED_ID.fullmatch(self.peer_id):
            raise ValueError(f"{self.peer_id!r} is not the id of a simulated node")

    def sign(self, statement: bytes) -> str:
        """32 hexadecimal digits: a BLAKE2b of the statement under the id as key."""
        return _signature(self.peer_id, statement)

    def verifies(self, peer_id: str, statement: bytes, signature: str) -> bool:
        """Whether the simulated node of that id signed; False for ids of real ones."""
        if not _SIMULATED_ID.fullmatch(peer_id):
            return False
        return hmac.compare_digest(_signature(peer_id, statement).encode(), signature.encode())

    def draw(self, size: int) -> bytes:
        """The same in every run. They are secrets of nobody."""
        seed = f"{self.life}/{self.peer_id}/{next(self._drawn)}".encode()
        return random_stream(hashlib.blake2b(seed, digest_size=32, person=b"p2pfl-simulated").digest(), size)


def _signature(peer_id: str, statement: bytes) -> str:
    return hashlib.blake2b(statement, digest_size=16, key=peer_id.encode(), person=b"p2pfl-simulated").hexdigest()
