"""A sum of additive shares: few clients who all stay learn the sum of their vectors, and of nobody anything else.

A vector becomes as many shares as there are clients: all but one are uniformly random modulo 2^64, and together they
are the vector. Each client gets one share of each, adds them up, and gives that to the coordinator, to whom it is as
random as any; all of these sums together are the sum. As old as secret sharing: J. C. Benaloh: "Secret Sharing
Homomorphisms: Keeping Shares of a Secret Secret", CRYPTO 1986, https://doi.org/10.1007/3-540-47721-7_19. FederatedScope
has it as `use_ss`.

A client sends n - 1 vectors, and the coordinator passes them on, sealed for who they are for. Shares open only between
clients that have seen the same list and trained from the same model. What belongs to every sum of everybody is in
unanimous.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from p2pfl.crypto.aead import TAG_BYTES
from p2pfl.crypto.masks import open_sealed, seal
from p2pfl.crypto.signing import Signer
from p2pfl.errors import AggregationAborted, RemoteProtocolError
from p2pfl.privacy.encoding import Ring, Words
from p2pfl.privacy.secagg import Advert, Session, Stage, Verifies
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.unanimous import Collector, Party

__all__ = ["MOST_CLIENTS", "RING", "Adder", "Splitter", "sealed_bytes"]

RING = Ring(64)
MOST_CLIENTS = 16
"""Of a session: its traffic grows with their square."""
_DRAWN_BYTES = 1 << 20  # at once


def sealed_bytes(size: int) -> int:
    """Of a sealed share of so many integers."""
    return size * RING.word_bytes + TAG_BYTES


class Splitter(Party):
    """One client in one session. Whatever does not fit ends the session for it."""

    def __init__(self, session: Session, signer: Signer, floors: Floors) -> None:
        super().__init__(session, signer, floors)
        self._held: Words | None = None  # our own share, then the sum of all that we have

    def join(self, adverts: Sequence[Advert]) -> None:
        if len(adverts) > MOST_CLIENTS:
            count = len(adverts)
            raise AggregationAborted(f"the list has {count} clients, and at most {MOST_CLIENTS} add up by shares")
        super().join(adverts)

    def splitting(self, words: Words) -> Iterator[bytes]:
        """A sealed share for each of `others`, one in each step. `words` become our own share, which stays here."""
        self._advance(Stage.SHARED, Stage.MASKED)
        if words.dtype != RING.dtype:
            raise ValueError(f"shares are of integers modulo 2^64, not of {words.dtype}")
        for other in self.others:
            share = bytearray()
            while (left := words.nbytes - len(share)) > 0:
                share += self._signer.draw(min(left, _DRAWN_BYTES))
            np.subtract(words, RING.array(memoryview(share)), out=words)
            yield seal(self._agreed(other), self.roster.sid, self.me, other, bytes(share))
        self._held = words

    def adding(self, sealed: Sequence[bytes | memoryview]) -> Iterator[None]:
        """Add what each of the `others` has sealed for us, one in each step.

        Raises AggregationAborted, naming whose share is none.
        """
        self._advance(Stage.MASKED, Stage.DECIDED)
        if self._held is None or len(sealed) != len(self.others):
            raise AggregationAborted("the shares that came are not those of all clients of the list")
        for other, each in zip(self.others, sealed, strict=True):
            try:
                share = open_sealed(self._agreed(other), self.roster.sid, other, self.me, bytes(each))
            except RemoteProtocolError as error:
                raise AggregationAborted("has sealed a share for us that does not open", culprits=(other,)) from error
            if len(share) != self._held.nbytes:
                raise AggregationAborted("has sealed a share for us of another size", culprits=(other,))
            np.add(self._held, RING.array(memoryview(share)), out=self._held)
            yield

    def total(self) -> Words:
        """The sum of our own share and of those that others have given us."""
        self._advance(Stage.DECIDED, Stage.OVER)
        assert self._held is not None, "it is added to before"
        return self._held

    def wipe(self) -> None:
        """End the session: our key is overwritten, and our share is let go."""
        super().wipe()
        self._held = None


class Adder(Collector):
    """The coordinator's side: it passes sealed shares on, and adds up sums of shares."""

    def __init__(self, session: Session, size: int, verifies: Verifies) -> None:
        super().__init__(session, size, verifies)
        self._sealed: dict[str, dict[str, memoryview]] = {}  # by receiver and sender
        self._dealt: set[str] = set()

    def deal(self, peer: str, sealed: Sequence[memoryview]) -> None:
        """Take what a client has sealed for each of the others, by id."""
        others = [other for other in self.roster.peers if other != peer]
        fits = len(sealed) == len(others) and all(each.nbytes == sealed_bytes(self.size) for each in sealed)
        if not fits or peer in self._dealt:
            raise AggregationAborted("has not dealt one share to each of the others", culprits=(peer,))
        self._dealt.add(peer)
        for other, each in zip(others, sealed, strict=True):
            self._sealed.setdefault(other, {})[peer] = each

    def close_shares(self) -> None:
        """Raise AggregationAborted, naming who is gone, unless all have dealt."""
        self._complete(self._dealt, "has not dealt its shares")

    def sealed_for(self, peer: str) -> list[memoryview]:
        """What the others have sealed for a client, by id; once, for it is not kept."""
        given = self._sealed.pop(peer)
        return [given[other] for other in sorted(given)]
