"""A sum of additive shares: few clients who all stay learn the sum of their vectors, and of nobody anything else.

A vector becomes as many shares as there are clients: all but one are uniformly random modulo 2^64, and together they
are the vector. Each client gets one share of each, adds them up, and gives that to the coordinator, to whom it is as
random as any; all of these sums together are the sum. As old as secret sharing: J. C. Benaloh: "Secret Sharing
Homomorphisms: Keeping Shares of a Secret Secret", CRYPTO 1986, https://doi.org/10.1007/3-540-47721-7_19. FederatedScope
has it as `use_ss`.

Every share is needed: whoever is lost ends the session. A client sends n - 1 vectors, and the coordinator passes them
on, sealed for who they are for. List, keys and signatures are those of secagg.py: shares open only between clients that
have seen the same list and trained from the same model. Here are both sides, without any I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from p2pfl.crypto.aead import TAG_BYTES
from p2pfl.crypto.masks import agree, open_sealed, public_of, seal
from p2pfl.crypto.signing import Signer
from p2pfl.errors import AggregationAborted, RemoteProtocolError
from p2pfl.privacy.encoding import Ring, Words
from p2pfl.privacy.secagg import KEY_BYTES, Advert, Roster, Session, Stage, Verifies
from p2pfl.privacy.secagg_client import Floors

__all__ = ["MOST_CLIENTS", "RING", "Adder", "Splitter", "sealed_bytes"]

RING = Ring(64)
MOST_CLIENTS = 16
"""Of a session: its traffic grows with their square."""
_DRAWN_BYTES = 1 << 20  # at once


def sealed_bytes(size: int) -> int:
    """Of a sealed share of so many integers."""
    return size * RING.word_bytes + TAG_BYTES


class Splitter:
    """One client in one session. Each stage is for once; whatever does not fit ends the session for it."""

    def __init__(self, session: Session, signer: Signer, floors: Floors) -> None:
        self.session = session
        self._stage = Stage.ADVERTISED
        self._signer = signer
        self._floors = floors
        self._key = bytearray(signer.draw(KEY_BYTES))
        self._roster: Roster | None = None
        self._held: Words | None = None  # our own share, then the sum of all that we have
        keys = public_of(self._key) + signer.draw(2 * KEY_BYTES)  # where others have a key for masks, nobody has one
        self.advert = Advert(signer.peer_id, keys, signer.sign(session.advertised(keys)))

    @property
    def roster(self) -> Roster:
        """The list. Raises AggregationAborted before there is one."""
        if self._roster is None:
            raise AggregationAborted("there is no list of clients yet")
        return self._roster

    @property
    def others(self) -> tuple[str, ...]:
        """All clients but ourselves, by id: the order of sealed shares."""
        return tuple(peer for peer in self.roster.peers if peer != self._signer.peer_id)

    def join(self, adverts: Sequence[Advert]) -> None:
        """Check the whole list. Raises AggregationAborted."""
        self._advance(Stage.ADVERTISED, Stage.SHARED)
        roster = Roster(self.session, adverts, self._signer.verifies)
        if self._signer.peer_id not in roster or roster[self._signer.peer_id] != self.advert:
            raise AggregationAborted("the list of clients does not have our own entry as we signed it")
        if len(roster) > MOST_CLIENTS:
            raise AggregationAborted(f"the list has {len(roster)} clients, and at most {MOST_CLIENTS} add up by shares")
        self._floors.check(roster)
        self._roster = roster

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
            yield seal(self._agreed(other), self.roster.sid, self._signer.peer_id, other, bytes(share))
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
                share = open_sealed(self._agreed(other), self.roster.sid, other, self._signer.peer_id, bytes(each))
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

    def sign(self, digest: bytes) -> str:
        """Our signature on the hash of our sum."""
        return self._signer.sign(self.session.statement("sum", self.roster.sid, digest))

    def wipe(self) -> None:
        """End the session: our key is overwritten, and our share is let go."""
        self._key[:] = bytes(len(self._key))
        self._held = None
        self._stage = Stage.OVER

    def _agreed(self, other: str) -> bytes:
        if self._stage == Stage.OVER:
            raise AggregationAborted("the session is over, and its key is gone")
        return agree(self._key, self.roster[other].parts[0])

    def _advance(self, before: Stage, after: Stage) -> None:
        if self._stage != before:
            raise AggregationAborted(f"this comes in stage {self._stage.name}, and belongs behind {before.name}")
        self._stage = after

    def __repr__(self) -> str:
        return f"<Splitter of session {self.session.nonce[:8]} {self._stage.name.lower()}>"


class Adder:
    """The coordinator's side: it passes sealed shares on, and adds up sums of shares. Whoever is lost ends it."""

    def __init__(self, session: Session, size: int, verifies: Verifies) -> None:
        """`size`: integers of a vector, all of them."""
        self.session = session
        self._size = size
        self._verifies = verifies
        self._adverts: dict[str, Advert] = {}
        self._roster: Roster | None = None
        self._sealed: dict[str, dict[str, memoryview]] = {}  # by receiver and sender
        self._dealt: set[str] = set()
        self._sum: Words = np.zeros(size, dtype=RING.dtype)
        self._added: dict[str, bytes] = {}

    @property
    def roster(self) -> Roster:
        """The list of clients, once it is closed."""
        assert self._roster is not None, "it is closed first"
        return self._roster

    @property
    def added(self) -> Mapping[str, bytes]:
        """The hashes of the sums of shares, by who sent them."""
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

    def deal(self, peer: str, sealed: Sequence[memoryview]) -> None:
        """Take what a client has sealed for each of the others, by id."""
        others = [other for other in self.roster.peers if other != peer]
        fits = len(sealed) == len(others) and all(each.nbytes == sealed_bytes(self._size) for each in sealed)
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

    def add(self, peer: str, words: Words, digest: bytes, signature: str) -> None:
        """Take a client's sum of shares, and its hash."""
        statement = self.session.statement("sum", self.roster.sid, digest)
        if peer not in self.roster or peer in self._added or not self._verifies(peer, statement, signature):
            raise AggregationAborted("has not signed a sum of shares that was asked for", culprits=(peer,))
        if words.shape != self._sum.shape or words.dtype != self._sum.dtype:
            raise AggregationAborted("has sent a sum of another size", culprits=(peer,))
        np.add(self._sum, words, out=self._sum)
        self._added[peer] = digest

    def total(self) -> Words:
        """The sum of all vectors. Raises AggregationAborted, naming who is gone, unless all have given theirs."""
        self._complete(self._added, "has not given its sum of shares")
        return self._sum

    def _complete(self, there: Collection[str], what: str) -> None:
        gone = tuple(peer for peer in self.roster.peers if peer not in there)
        if gone:
            raise AggregationAborted(what, culprits=gone)

    def __repr__(self) -> str:
        return f"<Adder of session {self.session.nonce[:8]}, {len(self._added)} of {len(self._adverts)} added>"
