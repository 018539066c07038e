"""What nodes of a sampled course tell each other of all nodes, and which of them are a round's sample.

M. de Vos, A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma: "Decentralized Learning Made Practical with
Client Sampling", 2023, https://arxiv.org/abs/2302.13837. No clock, no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pfl.errors import RemoteProtocolError

__all__ = ["Seen", "View", "sampled"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A view as it is sent. Both have an entry for each seat."""

    rounds: tuple[int, ...]
    """The last round, from 0, in which the node did something."""
    presence: tuple[int, ...]
    """How often the node has joined and left: it is there if that is odd."""


class View:
    """What one node has heard of all. To merge is to take the larger of each number: in any order, however often."""

    def __init__(self, n: int) -> None:
        """All of `n` seats have joined, and nobody has done anything since."""
        self._rounds = [0] * n
        self._presence = [1] * n

    @property
    def round(self) -> int:
        """The highest round in which anybody did something."""
        return max(self._rounds)

    @property
    def seen(self) -> Seen:
        """As it is sent."""
        return Seen(tuple(self._rounds), tuple(self._presence))

    def note(self, seat: int, round: int) -> None:
        """This node did something in this round."""
        self._rounds[seat] = max(self._rounds[seat], round)

    def join(self, seat: int, round: int) -> None:
        """This node is there, again if it had left."""
        self._presence[seat] |= 1
        self.note(seat, round)

    def leave(self, seat: int) -> None:
        """This node is gone, until it joins again."""
        self._presence[seat] += self._presence[seat] % 2

    def merge(self, other: Seen, most: int) -> None:
        """Learn what another has heard. Raises RemoteProtocolError for other seats, and for rounds beyond `most`."""
        fits = len(other.rounds) == len(self._rounds) and len(other.presence) == len(self._presence)
        if not fits or min(*other.rounds, *other.presence) < 0 or max(other.rounds) > most:
            raise RemoteProtocolError(f"a view came that is none of {len(self._rounds)} seats up to round {most + 1}")
        self._rounds = [*map(max, self._rounds, other.rounds)]
        self._presence = [*map(max, self._presence, other.presence)]

    def active(self, round: int, within: int) -> list[int]:
        """Who has joined and did something in the last `within` rounds before this one; 0: whenever that was."""
        return [
            seat
            for seat, (last, presence) in enumerate(zip(self._rounds, self._presence, strict=True))
            if presence % 2 and (not within or last >= round - within)
        ]


def sampled(seats: Iterable[int], round: int) -> Sequence[int]:
    """The seats in the order of H(seat, round): the first s of them are the sample of a round, for whoever computes it.

    >>> sampled(range(6), 0)[:3], sampled(range(6), 1)[:3]
    ([1, 3, 2], [0, 2, 4])
    """
    return sorted(seats, key=lambda seat: hashlib.blake2b(f"{seat}-{round}".encode(), digest_size=16).digest())
