"""What voters ask of each other, and who coordinates; see council.py.

All are requests: a node whose roles are not there yet refuses a request, and is not blamed for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.council.consensus import Refusal
from p2pfl.journal.certificate import Certificate
from p2pfl.node.events import Event
from p2pfl.wire.message import Message, Request

__all__ = [
    "Consult", "Endorse", "Endorsed", "Follow", "LeaderElected", "Leadership", "Promised", "Stand", "Standing",
]  # fmt: skip

_MOST = 1 << 53  # terms, rounds


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who coordinates."""

    term: int
    seat: int


@dataclass(frozen=True, slots=True)
class LeaderElected(Event):
    """Somebody coordinates from now on, as far as this node knows."""

    term: int
    seat: int

    def __str__(self) -> str:
        return f"seat {self.seat} coordinates in term {self.term}"


class Standing(Message):
    """Where a voter stands: the term that it has promised, and how many rounds it knows to be committed."""

    term: int
    rounds: int

    def __post_init__(self) -> None:
        _check(self.term, self.rounds)


class Consult(Request[Standing]):
    """We know of nobody who leads, so it is not us; this is where we stand. Where do you?"""

    term: int
    rounds: int

    def __post_init__(self) -> None:
        _check(self.term, self.rounds)


class Follow(Request[Standing]):
    """We lead in this term, and this is the last round that was committed, if any was."""

    term: int
    committed: Certificate | None

    def __post_init__(self) -> None:
        _check(self.term)


class Promised(Message):
    """The answer to Stand: what was endorsed last of rounds that are not committed; or why there is no promise."""

    accepted: Certificate | None = None
    refusal: Refusal | None = None


class Stand(Request[Promised]):
    """Promise to follow us in this term; so many rounds are committed, as far as we know."""

    term: int
    rounds: int

    def __post_init__(self) -> None:
        _check(self.term, self.rounds)


class Endorsed(Message):
    """The answer to Endorse: a signature, or why there is none."""

    signature: str = ""
    refusal: Refusal | None = None


class Endorse(Request[Endorsed]):
    """Sign this certificate of the next round."""

    certificate: Certificate

    def __post_init__(self) -> None:
        _check(self.certificate.term, self.certificate.round)


def _check(term: int, rounds: int = 0) -> None:
    if not 1 <= term <= _MOST or not 0 <= rounds <= _MOST:
        raise ValueError(f"there is no term {term} with {rounds} committed rounds")
