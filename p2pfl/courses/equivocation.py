"""Signed statements of which model a node gave in a round, and the proof that it gave two. No I/O, no clock.

After A. Haeberlen, P. Kouznetsov, P. Druschel: "PeerReview: Practical Accountability for Distributed Systems", SOSP
2007, https://doi.org/10.1145/1294261.1294279: statements are signed and passed on, and two that contradict each other
convince everybody. There a log is signed, and here just one hash for each round: that is all that neighbours rely on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from p2pfl.crypto.signing import Signer
from p2pfl.errors import JournalError, RemoteProtocolError

__all__ = ["ROUNDS_AHEAD", "ROUNDS_BEHIND", "Pledge", "Proof", "Statement", "Verify", "Witness", "model_digest"]

ROUNDS_BEHIND = 16
"""A witness keeps the statements of so many rounds before its own ..."""
ROUNDS_AHEAD = 64
"""... and of so many after it."""
_DIGEST_BYTES = 32  # who signs it may look for two models of one digest: at 16 bytes that is within reach
_PURPOSE = b"p2pfl model v1\0"

Verify = Callable[[str, bytes, str], bool]
"""Whether (the peer of this id, this statement, was signed so); see Signer.verifies."""


def model_digest(buffer: bytes | memoryview) -> str:
    """What stands for a model in a statement: 64 hexadecimal digits of its bytes, as they are sent."""
    return hashlib.blake2b(buffer, digest_size=_DIGEST_BYTES, person=b"p2pfl-stated").hexdigest()


@dataclass(frozen=True, slots=True)
class Statement:
    """In this round (from 0) of this run, the one model that `peer` gives from its seat has this digest."""

    run: str
    round: int
    seat: int
    peer: str
    model: str
    signature: str

    def __post_init__(self) -> None:
        if self.round < 0 or self.seat < 0:
            raise ValueError(f"round {self.round} and seat {self.seat} must not be negative")
        if len(self.model) != 2 * _DIGEST_BYTES:
            raise ValueError("a model's digest has another length")

    @classmethod
    def signed(cls, signer: Signer, run: str, round: int, seat: int, model: str) -> Statement:
        """A statement of our own."""
        bare = cls(run, round, seat, signer.peer_id, model, "")
        return replace(bare, signature=signer.sign(bare.content))

    @property
    def content(self) -> bytes:
        """What is signed."""
        return _PURPOSE + msgspec.json.encode([self.run, self.round, self.seat, self.peer, self.model])

    def is_signed(self, verify: Verify) -> bool:
        """Whether it is its peer's."""
        return verify(self.peer, self.content, self.signature)

    def contradicts(self, other: Statement) -> bool:
        """Whether nobody who is honest makes both."""
        same = replace(other, model=self.model, signature=self.signature) == self
        return same and other.model != self.model


@dataclass(frozen=True, slots=True)
class Proof:
    """Two statements that contradict each other. It convinces whoever can check signatures, without anything else."""

    first: Statement
    second: Statement

    @property
    def round(self) -> int:
        """Of both, from 0."""
        return self.first.round

    @property
    def seat(self) -> int:
        """Of who made both."""
        return self.first.seat

    @property
    def peer(self) -> str:
        """Who made both."""
        return self.first.peer

    def holds(self, verify: Verify) -> bool:
        """Whether its peer has made both, and they contradict each other."""
        return self.first.contradicts(self.second) and self.first.is_signed(verify) and self.second.is_signed(verify)


class Witness:
    """Notes who stated what, and finds contradictions. Keeps one statement for each seat and round that it looks at.

    What is signed by nobody who sits in the course is not kept: who sits where is hearsay, so its bearer is not blamed.
    """

    def __init__(self, run: str, sits: Callable[[int], str | None], verify: Verify) -> None:
        """`sits`: the peer id of who sits in a seat, if that is known."""
        self.proofs: dict[int, Proof] = {}
        """Against whom there is one, by seat. These stay."""
        self._run = run
        self._sits = sits
        self._verify = verify
        self._round = 0
        self._heard: dict[int, dict[int, Statement]] = {}  # round -> seat -> what was stated first

    def advance(self, round: int) -> None:
        """We are in this round, from 0: what was stated long before it counts no longer."""
        self._round = round
        for old in [kept for kept in self._heard if not self._looks_at(kept)]:
            del self._heard[old]

    def note(self, statement: Statement) -> Statement | Proof | None:
        """Take a statement, from whomever; what is new by it: the statement, a proof, or nothing.

        Raises RemoteProtocolError if it is of another run, or its peer has not signed it: no honest node passes it on.
        """
        known = self._heard.get(statement.round, {}).get(statement.seat)
        if statement == known:
            return None
        if statement.run != self._run or not statement.is_signed(self._verify):
            raise RemoteProtocolError(f"what seat {statement.seat} is to have stated is not signed, or of another run")
        if self._sits(statement.seat) != statement.peer or statement.seat in self.proofs:
            return None
        if known is not None:
            return self._convicted(Proof(known, statement)) if known.contradicts(statement) else None
        if not self._looks_at(statement.round):
            return None
        self._heard.setdefault(statement.round, {})[statement.seat] = statement
        return statement

    def convict(self, proof: Proof) -> Proof | None:
        """Take a proof that somebody else has found; the proof, if it is new.

        Raises RemoteProtocolError for one that does not hold, or is of another run.
        """
        if proof.first.run != self._run or not proof.holds(self._verify):
            raise RemoteProtocolError(f"what is to convict seat {proof.seat} proves nothing")
        if self._sits(proof.seat) != proof.peer or proof.seat in self.proofs:
            return None
        return self._convicted(proof)

    def known(self) -> Iterator[Statement | Proof]:
        """All that is kept, what matters most at the end."""
        for round in sorted(self._heard):
            yield from self._heard[round].values()
        yield from self.proofs.values()

    def _looks_at(self, round: int) -> bool:
        return self._round - ROUNDS_BEHIND <= round <= self._round + ROUNDS_AHEAD

    def _convicted(self, proof: Proof) -> Proof:
        self.proofs[proof.seat] = proof
        for heard in self._heard.values():
            heard.pop(proof.seat, None)
        return proof


@dataclass(frozen=True, slots=True)
class Pledge:
    """What a node has stated last. To be on disk before anybody gets the statement: it binds the node's later lives.

    A node that was killed trains the round again, and maybe from another model, or meets other neighbours. As long as
    it states nothing that its pledge does not permit, nobody can convict it.
    """

    round: int = -1
    model: str = ""

    def permits(self, round: int, model: str) -> bool:
        """Whether this can be stated now: of rounds that are over nothing, of the last one just the same again."""
        return round > self.round or (round, model) == (self.round, self.model)

    def state(self) -> Mapping[str, int | str]:
        """As a journal keeps it."""
        return {"round": self.round, "model": self.model}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Pledge:
        """From what `state` gave. Raises JournalError for anything else."""
        try:
            return cls(int(state["round"]), str(state["model"]))
        except (KeyError, ValueError) as error:
            raise JournalError(f"this is not what a node has pledged: {error!r}") from error
