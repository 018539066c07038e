"""What sums have in common that need everybody: keys and the list at first, signed summands and their sum in the end.

Both sides stand here, without I/O; additive.py and neighbourhood.py say what happens in between. List, keys and
signatures are those of secagg.py: the keys that two clients agree on are the same only if both have seen one list, and
have agreed on what the session is for. Each stage is for once. Whoever is lost behind the list ends the session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from p2pfl.crypto.masks import agree, public_of
from p2pfl.crypto.signing import Signer
from p2pfl.errors import AggregationAborted
from p2pfl.privacy.encoding import Words
from p2pfl.privacy.secagg import KEY_BYTES, Advert, Roster, Session, Stage, Verifies
from p2pfl.privacy.secagg_client import Floors

__all__ = ["Collector", "Party"]


class Party:
    """One of those whose vectors are summed up, in one session."""

    def __init__(self, session: Session, signer: Signer, floors: Floors) -> None:
        self.session = session
        self._stage = Stage.ADVERTISED
        self._signer = signer
        self._floors = floors
        self._key = bytearray(signer.draw(KEY_BYTES))
        self._roster: Roster | None = None
        keys = public_of(self._key) + signer.draw(2 * KEY_BYTES)  # one key will do: the second place is filled up
        self.advert = Advert(signer.peer_id, keys, signer.sign(session.advertised(keys)))

    @property
    def me(self) -> str:
        """Our peer id."""
        return self._signer.peer_id

    @property
    def roster(self) -> Roster:
        """The list. Raises AggregationAborted before there is one."""
        if self._roster is None:
            raise AggregationAborted("there is no list of clients yet")
        return self._roster

    @property
    def others(self) -> tuple[str, ...]:
        """All of the list but ourselves, by id."""
        return tuple(peer for peer in self.roster.peers if peer != self.me)

    def join(self, adverts: Sequence[Advert]) -> None:
        """Check the whole list. Raises AggregationAborted."""
        self._advance(Stage.ADVERTISED, Stage.SHARED)
        roster = Roster(self.session, adverts, self._signer.verifies)
        if self.me not in roster or roster[self.me] != self.advert:
            raise AggregationAborted("the list of clients does not have our own entry as we signed it")
        self._floors.check(roster)
        self._roster = roster

    def sign(self, digest: bytes) -> str:
        """Our signature on the hash of what we give to the sum."""
        return self._signer.sign(self.session.statement("sum", self.roster.sid, digest))

    def wipe(self) -> None:
        """End the session, and overwrite its key."""
        self._key[:] = bytes(len(self._key))
        self._stage = Stage.OVER

    def _agreed(self, other: str) -> bytes:
        """The secret with one of the others."""
        if self._stage == Stage.OVER:
            raise AggregationAborted("the session is over, and its key is gone")
        return agree(self._key, self.roster[other].parts[0])

    def _advance(self, before: Stage, after: Stage) -> None:
        if self._stage != before:
            raise AggregationAborted(f"this comes in stage {self._stage.name}, and belongs behind {before.name}")
        self._stage = after

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {self.session.nonce[:8]} {self._stage.name.lower()}>"


class Collector:
    """Who gets the sum: it takes what all give to it."""

    def __init__(self, session: Session, size: int, verifies: Verifies) -> None:
        """`size`: integers of a vector, all of them."""
        self.session = session
        self.size = size
        self._verifies = verifies
        self._adverts: dict[str, Advert] = {}
        self._roster: Roster | None = None
        self._sum: Words = np.zeros(size, dtype=session.terms.ring.dtype)
        self._added: dict[str, bytes] = {}

    @property
    def roster(self) -> Roster:
        """The list of clients, once it is closed."""
        assert self._roster is not None, "it is closed first"
        return self._roster

    @property
    def added(self) -> Mapping[str, bytes]:
        """The hashes of what is in the sum, by who sent it."""
        return self._added

    def enlist(self, peer: str, advert: Advert) -> None:
        """Take a client's keys."""
        if advert.peer != peer:
            raise AggregationAborted("has sent another's keys", culprits=(peer,))
        advert.check(self.session, self._verifies)
        self._adverts[peer] = advert

    def close_list(self) -> tuple[Advert, ...]:
        """The whole list, by id. From here on all of it are needed. Raises AggregationAborted if it cannot be one."""
        self._roster = Roster(self.session, (self._adverts[peer] for peer in sorted(self._adverts)), self._verifies)
        return self._roster.adverts

    def add(self, peer: str, words: Words, digest: bytes, signature: str) -> None:
        """Take what a client gives to the sum, and its hash."""
        statement = self.session.statement("sum", self.roster.sid, digest)
        if peer not in self.roster or peer in self._added or not self._verifies(peer, statement, signature):
            raise AggregationAborted("has not signed a summand that was asked for", culprits=(peer,))
        if words.shape != self._sum.shape or words.dtype != self._sum.dtype:
            raise AggregationAborted("has sent a summand of another size", culprits=(peer,))
        np.add(self._sum, words, out=self._sum)
        self._added[peer] = digest

    def total(self) -> Words:
        """The sum of all vectors. Raises AggregationAborted, naming who is gone, unless all have given theirs."""
        self._complete(self._added, "has given nothing to the sum")
        return self._sum

    def _complete(self, there: Collection[str], what: str) -> None:
        gone = tuple(peer for peer in self.roster.peers if peer not in there)
        if gone:
            raise AggregationAborted(what, culprits=gone)

    def __repr__(self) -> str:
        kind, count = type(self).__name__, len(self._adverts)
        return f"<{kind} of session {self.session.nonce[:8]}, {len(self._added)} of {count} added>"
