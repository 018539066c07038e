"""What a round was made of: whose updates, with their hashes, and the hash of what became of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from p2pfl.errors import JournalError

__all__ = ["Certificate", "Contribution"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One update that entered the aggregate, once."""

    seat: int
    peer: str
    update_hash: str
    weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", float(self.weight))  # 5 and 5.0 are other bytes to sign


@dataclass(frozen=True, slots=True)
class Certificate:
    """A round as it was committed. `round` counts from 0, `term` is that of the coordinator: 1 where it is fixed."""

    run: str
    round: int
    term: int
    aggregate_hash: str
    contributions: tuple[Contribution, ...]  # by seat
    signatures: dict[str, str] = field(default_factory=dict)  # peer id -> what it signed `statement` with

    @property
    def statement(self) -> bytes:
        """The bytes that are signed: canonical JSON of all but the signatures."""
        return b"p2pfl round v1\0" + msgspec.json.encode(replace(self, signatures={}), order="sorted")

    @property
    def digest(self) -> str:
        """Equal if and only if the rounds are: signatures are not in it."""
        return hashlib.blake2b(self.statement, digest_size=16, person=b"p2pfl-round").hexdigest()

    def signed(self, peer: str, signature: str) -> Certificate:
        """With one signature more."""
        return replace(self, signatures={**self.signatures, peer: signature})

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def of(cls, plain: object) -> Certificate:
        """What `plain` gave. Raises JournalError for anything else."""
        try:
            return msgspec.convert(plain, cls, strict=True)
        except msgspec.ValidationError as error:
            raise JournalError(f"this is no certificate: {error}") from error
