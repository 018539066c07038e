"""The coordinator's side of a secure aggregation, without I/O. It holds a sum of masked vectors, and never one alone.

Who gives what cannot be used is refused with AggregationAborted, and counts as gone from then on. The session itself
ends where too few are left, or where the shares of somebody's seed do not give it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from p2pfl.crypto.aead import TAG_BYTES
from p2pfl.crypto.masks import SCALAR_BYTES, agree, commitment, mask_key, public_of
from p2pfl.crypto.shares import PRIME, SharesInconsistent, correct
from p2pfl.errors import AggregationAborted
from p2pfl.privacy.encoding import Words
from p2pfl.privacy.secagg import Advert, Dealt, Revealed, Roster, Session, Stage, Verifies
from p2pfl.privacy.secagg_masks import Mask, masking

__all__ = ["Aggregator"]

_SEALED_BYTES = 2 * SCALAR_BYTES + TAG_BYTES


class Aggregator:
    """One session. A stage takes answers until it is closed, which gives what the next one asks."""

    def __init__(self, session: Session, size: int, verifies: Verifies) -> None:
        """`size`: numbers of a vector, before it is encoded."""
        self.session = session
        self.culprits: dict[str, str] = {}
        """Peers that have broken the protocol without ending the session, and how."""
        self._verifies = verifies
        self._stage = Stage.ADVERTISED
        self._adverts: dict[str, Advert] = {}
        self._roster: Roster | None = None
        self._dealt: dict[str, Dealt] = {}
        self._sharers: frozenset[str] = frozenset()
        self._sum: Words = np.zeros(session.terms.encoding.size(size), dtype=session.terms.ring.dtype)
        self._masked: dict[str, bytes] = {}  # hashes of the vectors in the sum, by who sent them
        self._survivors: frozenset[str] = frozenset()
        self._confirmed: dict[str, str] = {}
        self._revealed: dict[str, Revealed] = {}

    @property
    def roster(self) -> Roster:
        """The list of clients, once it is closed."""
        assert self._roster is not None, "it is closed first"
        return self._roster

    @property
    def survivors(self) -> frozenset[str]:
        """Whose vectors are in the sum, once that is closed."""
        return self._survivors

    # -- advertise -------------------------------------------------------------------------------------------------

    def enlist(self, peer: str, advert: Advert) -> None:
        """Take a client's keys."""
        self._expect(Stage.ADVERTISED)
        if advert.peer != peer:
            raise AggregationAborted("has sent another's keys", culprits=(peer,))
        advert.check(self.session, self._verifies)
        self._adverts[peer] = advert

    def close_list(self) -> tuple[Advert, ...]:
        """The whole list, by id. Raises AggregationAborted if it cannot be one."""
        self._expect(Stage.ADVERTISED)
        self._roster = Roster(self.session, (self._adverts[peer] for peer in sorted(self._adverts)), self._verifies)
        self._stage = Stage.SHARED
        return self._roster.adverts

    # -- share -----------------------------------------------------------------------------------------------------

    def deal(self, peer: str, dealt: Dealt) -> None:
        """Take what a client has sealed for its neighbours."""
        self._expect(Stage.SHARED)
        self._signed(peer, "share", dealt.body, dealt.signature)
        fits = all(len(sealed) == _SEALED_BYTES for sealed in dealt.sealed.values())
        if not fits or set(dealt.sealed) != set(self.roster.neighbours(peer)):
            raise AggregationAborted("has not dealt shares to just its neighbours", culprits=(peer,))
        self._dealt[peer] = dealt

    def close_shares(self) -> list[int]:
        """Who has shared, by number in the list."""
        self._expect(Stage.SHARED)
        self._sharers = frozenset(self._dealt)
        self._enough(self._sharers, "have shared")
        self._stage = Stage.MASKED
        return self.roster.indices(self._sharers)

    def sealed_for(self, peer: str) -> dict[str, bytes]:
        """What its neighbours have sealed for a client."""
        return {
            other: self._dealt[other].sealed[peer] for other in self.roster.neighbours(peer) if other in self._sharers
        }

    # -- mask ------------------------------------------------------------------------------------------------------

    def add(self, peer: str, words: Words, digest: bytes, signature: str) -> None:
        """Take a masked vector, and its hash, into the sum. What comes when that is closed is refused."""
        self._expect(Stage.MASKED)
        self._signed(peer, "mask", (self.roster.sid, digest), signature)
        if peer not in self._sharers or peer in self._masked:
            raise AggregationAborted("has sent a vector that was not asked for", culprits=(peer,))
        if words.shape != self._sum.shape or words.dtype != self._sum.dtype:
            raise AggregationAborted("has sent a vector of another size", culprits=(peer,))
        np.add(self._sum, words, out=self._sum)
        self._masked[peer] = digest

    def close_sum(self) -> list[int]:
        """Whose vectors it has, by number in the list."""
        self._expect(Stage.MASKED)
        self._survivors = frozenset(self._masked)
        self._enough(self._survivors, "have sent a vector")
        self.roster.check_sum(self._survivors)
        self._stage = Stage.CONFIRMED
        return self.roster.indices(self._survivors)

    @property
    def masked(self) -> Mapping[str, bytes]:
        """The hashes of the masked vectors in the sum, by who sent them."""
        return self._masked

    # -- confirm ---------------------------------------------------------------------------------------------------

    def confirm(self, peer: str, signature: str) -> None:
        """Take a client's signature on who has sent a vector."""
        self._expect(Stage.CONFIRMED)
        if peer not in self._survivors or not self._verifies(
            peer, self.roster.confirmation(self._survivors), signature
        ):
            raise AggregationAborted("has not signed who has sent a vector", culprits=(peer,))
        self._confirmed[peer] = signature

    def confirmations(self, peer: str) -> dict[str, str]:
        """What a client needs to see, of its neighbours and itself, to reveal."""
        return {other: self._confirmed[other] for other in self.roster.holders(peer) if other in self._confirmed}

    def close_confirmations(self) -> frozenset[str]:
        """Who may be asked to reveal: without consistency, all whose vectors are in the sum."""
        self._expect(Stage.CONFIRMED)
        self._stage = Stage.DECIDED
        active = self.session.terms.resilience.active
        return frozenset(self._confirmed) if active else self._survivors

    # -- reveal ----------------------------------------------------------------------------------------------------

    def reveal(self, peer: str, revealed: Revealed) -> None:
        """Take a client's shares."""
        self._expect(Stage.DECIDED)
        self._signed(peer, "reveal", (self.roster.sid, *revealed.body), revealed.signature)
        others = set(self.roster.neighbours(peer)) & self._sharers
        shares = (*revealed.own.values(), *revealed.mask.values())
        fits = all(len(share) == SCALAR_BYTES and _number(share) < PRIME for share in shares)
        if (
            not fits
            or peer not in self._survivors
            or set(revealed.own) != {peer, *(others & self._survivors)}
            or set(revealed.mask) != others - self._survivors
        ):
            raise AggregationAborted("has not revealed just the shares that were asked for", culprits=(peer,))
        self._revealed[peer] = revealed

    def unmask(self) -> Words:
        """The sum of the vectors of all survivors. Costs a mask for each of them, and more for those who are gone.

        Raises AggregationAborted.
        """
        for _ in self.unmasking():
            pass
        return self._sum

    def unmasking(self) -> Iterator[None]:
        """`unmask` in steps of some milliseconds; then it gives the sum at once."""
        if self._stage == Stage.OVER:
            return
        self._expect(Stage.DECIDED)
        masks = []
        for mask in self._left_over():
            masks.append(mask)
            yield
        yield from masking(self._sum, masks, self.roster.binding)
        self._stage = Stage.OVER

    def _left_over(self) -> Iterator[Mask]:
        """What is in the sum besides vectors, to be taken away."""
        for owner in sorted(self._survivors):
            seed = self._seed(
                owner, {peer: each.own[owner] for peer, each in self._revealed.items() if owner in each.own}
            )
            if commitment(seed) != self._dealt[owner].commitment:
                raise AggregationAborted("has dealt shares of another seed than it committed to", culprits=(owner,))
            yield Mask(seed.to_bytes(SCALAR_BYTES, "little"), added=False)
        for owner in sorted(self._sharers - self._survivors):
            shares = {peer: each.mask[owner] for peer, each in self._revealed.items() if owner in each.mask}
            private = mask_key(self._seed(owner, shares))
            if public_of(private) != self.roster[owner].parts[1]:
                raise AggregationAborted("has dealt shares of another key than it advertised", culprits=(owner,))
            for peer in self.roster.neighbours(owner):
                if peer in self._survivors:
                    yield Mask(agree(private, self.roster[peer].parts[1]), added=peer > owner)

    def _seed(self, owner: str, shares: Mapping[str, bytes]) -> int:
        """What the shares of one owner give. Who has given a wrong one is noted."""
        places = {self.roster.place(peer): peer for peer in shares}
        values = {place: _number(shares[peer]) for place, peer in places.items()}
        try:
            seed, wrong = correct(values, self.roster.plan.threshold)
        except SharesInconsistent as error:
            raise AggregationAborted(f"cannot be unmasked: {error}", culprits=(owner,)) from error
        for place in wrong:
            self.culprits[places[place]] = "has revealed wrong shares"
        return seed

    # -- what they have in common ----------------------------------------------------------------------------------

    def _expect(self, stage: Stage) -> None:
        if self._stage != stage:
            raise AggregationAborted(f"this comes in stage {self._stage.name}, and belongs to {stage.name}")

    def _signed(self, peer: str, stage: str, body: tuple[bytes, ...], signature: str) -> None:
        if peer not in self.roster or not self._verifies(peer, self.session.statement(stage, *body), signature):
            raise AggregationAborted(f"has not signed what it gives in stage {stage}", culprits=(peer,))

    def _enough(self, peers: frozenset[str], what: str) -> None:
        threshold = self.roster.plan.threshold
        if len(peers) < threshold:
            raise AggregationAborted(f"{len(peers)} clients {what}, and it takes {threshold}")

    def __repr__(self) -> str:
        return f"<Aggregator of session {self.session.nonce[:8]} {self._stage.name.lower()}>"


def _number(share: bytes) -> int:
    return int.from_bytes(share, "little")
