"""A client's side of a secure aggregation, without I/O: what it is told goes in, what it answers comes out.

It believes nobody: every list, set and signature is checked against what it knows itself, and whatever does not fit
ends the session for it, with all its secrets. Each stage is answered once; the same question again has the same answer,
so that one may be lost, and any other question ends the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from p2pfl.crypto.masks import (
    SCALAR_BYTES,
    agree,
    commitment,
    field_element,
    mask_key,
    open_sealed,
    public_of,
    seal,
)  # fmt: skip
from p2pfl.crypto.shares import split
from p2pfl.crypto.signing import Signer
from p2pfl.errors import AggregationAborted, RemoteProtocolError, require
from p2pfl.privacy.secagg import KEY_BYTES, Advert, Dealt, Revealed, Roster, Session, Stage, digest_of
from p2pfl.privacy.secagg_masks import Mask

__all__ = ["Client", "Floors"]

AnswerT = TypeVar("AnswerT")
_FIELD_BYTES = 48  # that an element of the field is drawn from
_SHARES_BYTES = 2 * SCALAR_BYTES  # of the own seed, then of the mask key


@dataclass(frozen=True, slots=True)
class Floors:
    """What a client asks of a session, whatever the course says. Raises ConfigError.

    `admits` says whether somebody of an id may take part: who is not admitted could be the coordinator itself.
    """

    min_cohort: int = 3
    min_threshold: float = 0.5
    """With consistency, more than so much of all holders of shares must reveal."""
    sessions_per_hour: int = 0
    """At most; 0: any number."""
    admits: Callable[[str], bool] = field(default=lambda peer: True)

    def __post_init__(self) -> None:
        require(self.min_cohort >= 3, f"min_cohort is {self.min_cohort}; it must be at least 3, or a sum hides nothing")
        require(0 <= self.min_threshold < 1, f"min_threshold is {self.min_threshold}; it must lie in [0, 1)")
        require(self.sessions_per_hour >= 0, f"sessions_per_hour is {self.sessions_per_hour}; it must not be negative")

    def check(self, roster: Roster) -> None:
        """Raise AggregationAborted for a list that is below what we ask."""
        strangers = tuple(peer for peer in roster.peers if not self.admits(peer))
        if strangers:
            raise AggregationAborted("is on the list of clients, and is not admitted here", culprits=strangers)
        if len(roster) < self.min_cohort:
            raise AggregationAborted(f"{len(roster)} clients are on the list, and we ask for {self.min_cohort}")
        plan = roster.plan
        if roster.session.terms.resilience.active and plan.threshold <= self.min_threshold * (plan.degree + 1):
            raise AggregationAborted(
                f"{plan.threshold} of {plan.degree + 1} shares would reveal, and we ask for more than "
                f"{self.min_threshold:g} of them"
            )


class Client:
    """One client in one session. Any exception but for a lost answer is the end of it: see `wipe`."""

    def __init__(self, session: Session, signer: Signer, floors: Floors) -> None:
        self.session = session
        self.stage = Stage.ADVERTISED
        self._signer = signer
        self._floors = floors
        self._share_key = bytearray(signer.draw(KEY_BYTES))
        self._mask_seed = bytearray(_drawn(signer))
        self._own_seed = bytearray(_drawn(signer))
        self._mask_key = bytearray(mask_key(_number(self._mask_seed)))
        self._roster: Roster | None = None
        self._agreed: dict[str, bytearray] = {}  # what shares are sealed with, by neighbour
        self._held: dict[str, bytearray] = {}  # shares of both seeds of others, and of ourselves, by owner
        self._sharers: frozenset[str] = frozenset()
        self._survivors: frozenset[str] = frozenset()
        self._answers: dict[Stage, tuple[bytes, object]] = {}
        keys = public_of(self._share_key) + public_of(self._mask_key) + signer.draw(KEY_BYTES)
        self.advert = Advert(signer.peer_id, keys, signer.sign(session.advertised(keys)))

    @property
    def roster(self) -> Roster:
        """The list. Raises AggregationAborted before there is one."""
        if self._roster is None:
            raise AggregationAborted("there is no list of clients yet")
        return self._roster

    @property
    def me(self) -> str:
        """Our peer id."""
        return self._signer.peer_id

    # -- the stages ------------------------------------------------------------------------------------------------

    def share(self, adverts: Sequence[Advert]) -> Dealt:
        """Check the whole list, and deal shares of our seeds. Raises AggregationAborted."""
        return self._once(Stage.SHARED, msgspec.json.encode(adverts), lambda: self._deal(adverts))

    def _deal(self, adverts: Sequence[Advert]) -> Dealt:
        roster = Roster(self.session, adverts, self._signer.verifies)
        if self.me not in roster or roster[self.me] != self.advert:
            raise AggregationAborted("the list of clients does not have our own entry as we signed it")
        self._floors.check(roster)
        self._roster = roster
        holders, threshold = roster.holders(self.me), roster.plan.threshold
        places = [roster.place(holder) for holder in holders]
        own = split(_number(self._own_seed), threshold, places, self._coefficient)
        mask = split(_number(self._mask_seed), threshold, places, self._coefficient)
        sealed: dict[str, bytes] = {}
        for holder, place in zip(holders, places, strict=True):
            shares = _octets(own[place]) + _octets(mask[place])
            if holder == self.me:
                self._held[self.me] = bytearray(shares)
            else:
                secret = agree(self._share_key, roster[holder].parts[0])
                self._agreed[holder] = bytearray(secret)
                sealed[holder] = seal(secret, roster.sid, self.me, holder, shares)
        bare = Dealt(commitment(_number(self._own_seed)), sealed, "")
        return Dealt(bare.commitment, sealed, self._sign("share", *bare.body))

    def receive(self, sharers: Sequence[int], sealed: Mapping[str, bytes]) -> tuple[Mask, ...]:
        """Take what was sealed for us by those neighbours who have shared, too; the masks to put on our vector.

        They are added by `add_masks` with `roster.binding`. Raises AggregationAborted, naming whose shares are none.
        """
        asked = msgspec.json.encode([list(sharers), sorted(sealed.items())])
        return self._once(Stage.MASKED, asked, lambda: self._unseal(sharers, sealed))

    def _unseal(self, sharers: Sequence[int], sealed: Mapping[str, bytes]) -> tuple[Mask, ...]:
        roster = self.roster
        self._sharers = roster.chosen(sharers)
        there = [peer for peer in roster.neighbours(self.me) if peer in self._sharers]
        if self.me not in self._sharers or set(sealed) != set(there):
            raise AggregationAborted("the shares that came are not those of our neighbours who have shared")
        self._enough(self._sharers, "have shared")
        for peer in there:
            try:
                shares = open_sealed(bytes(self._agreed[peer]), roster.sid, peer, self.me, sealed[peer])
            except RemoteProtocolError as error:
                raise AggregationAborted("has sealed shares for us that do not open", culprits=(peer,)) from error
            if len(shares) != _SHARES_BYTES:
                raise AggregationAborted("has sealed for us what are no shares", culprits=(peer,))
            self._held[peer] = bytearray(shares)
        agreed = [Mask(agree(self._mask_key, roster[peer].parts[1]), self.me < peer) for peer in there]
        return (Mask(bytes(self._own_seed), True), *agreed)

    def sign_masked(self, digest: bytes) -> str:
        """Our signature on the hash of our masked vector."""
        self._expect(Stage.MASKED)
        return self._sign("mask", self.roster.sid, digest)

    def confirm(self, survivors: Sequence[int]) -> str:
        """Check who has sent a vector, and sign just that set. Raises AggregationAborted."""
        asked = msgspec.json.encode(list(survivors))

        def sign() -> str:
            self._survivors = self._checked(survivors)
            return self._signer.sign(self.roster.confirmation(self._survivors))

        return self._once(Stage.CONFIRMED, asked, sign)

    def decide(self, survivors: Sequence[int], confirmations: Mapping[str, str]) -> bytes:
        """Settle for good whose seeds we reveal; 32 bytes that tell the session and the set.

        They must be there after a crash before `reveal` is called. Raises AggregationAborted, also for any other set
        than was confirmed, or decided, before: that is an attack.
        """
        asked = msgspec.json.encode(list(survivors))
        return self._once(Stage.DECIDED, asked, lambda: self._settle(survivors, confirmations))

    def _settle(self, survivors: Sequence[int], confirmations: Mapping[str, str]) -> bytes:
        roster, chosen = self.roster, self._checked(survivors)
        if self.session.terms.resilience.active:
            if chosen != self._survivors:
                raise AggregationAborted("we are asked to reveal for another set of clients than we have confirmed")
            statement, threshold = roster.confirmation(chosen), roster.plan.threshold
            signed = [peer for peer in roster.holders(self.me) if peer in chosen and peer in confirmations]
            good = [peer for peer in signed if self._signer.verifies(peer, statement, confirmations[peer])]
            if len(good) < threshold:
                raise AggregationAborted(f"{len(good)} neighbours have confirmed this set, and it takes {threshold}")
        self._survivors = chosen
        return hashlib.sha256(roster.sid + digest_of(chosen)).digest()

    def reveal(self) -> Revealed:
        """The shares for the set that was decided. From here on there is nothing left to reveal."""
        self._expect(Stage.DECIDED)
        roster = self.roster
        if self._answers.get(Stage.OVER) is None:
            others = [peer for peer in roster.neighbours(self.me) if peer in self._sharers]
            own = {
                peer: bytes(self._held[peer][:SCALAR_BYTES]) for peer in (*others, self.me) if peer in self._survivors
            }
            mask = {peer: bytes(self._held[peer][SCALAR_BYTES:]) for peer in others if peer not in self._survivors}
            bare = Revealed(own, mask, "")
            self._answers[Stage.OVER] = b"", Revealed(own, mask, self._sign("reveal", roster.sid, *bare.body))
            self._forget()
        answer = self._answers[Stage.OVER][1]
        assert isinstance(answer, Revealed), "nothing else is put there"
        return answer

    def wipe(self) -> None:
        """End the session: what we hold of secrets is overwritten. Copies that Python has made are not in our hands."""
        self._forget()
        self._answers.clear()
        self.stage = Stage.OVER

    # -- what they have in common ----------------------------------------------------------------------------------

    def _once(self, stage: Stage, asked: bytes, answer: Callable[[], AnswerT]) -> AnswerT:
        """The answer of a stage, which is found when it is first asked for."""
        if stage in self._answers:
            before, found = self._answers[stage]
            if before != asked:
                self.wipe()
                raise AggregationAborted(f"we are asked a second, different question in stage {stage.name}")
            return found  # type: ignore[return-value]  # what this stage has answered
        try:
            self._expect(Stage(stage - 1) if stage != Stage.DECIDED else self._before_deciding)
            self._answers[stage] = asked, answer()
        except (AggregationAborted, RemoteProtocolError):
            self.wipe()
            raise
        self.stage = stage
        return self._answers[stage][1]  # type: ignore[return-value]  # the same

    @property
    def _before_deciding(self) -> Stage:
        return Stage.CONFIRMED if self.session.terms.resilience.active else Stage.MASKED

    def _expect(self, stage: Stage) -> None:
        if self.stage != stage:
            raise AggregationAborted(f"this comes in stage {self.stage.name}, and belongs behind {stage.name}")

    def _checked(self, survivors: Sequence[int]) -> frozenset[str]:
        """Who is said to have sent a vector, if that can be."""
        chosen = self.roster.chosen(survivors)
        if self.me not in chosen:
            raise AggregationAborted("we have sent our vector, and are said to be gone")
        if not chosen <= self._sharers:
            raise AggregationAborted("somebody is said to have sent a vector who has not shared")
        if len(chosen) < self._floors.min_cohort:
            raise AggregationAborted(f"the sum is of {len(chosen)} vectors, and we ask for {self._floors.min_cohort}")
        self._enough(chosen, "have sent a vector")
        self.roster.check_sum(chosen)
        return chosen

    def _enough(self, peers: frozenset[str], what: str) -> None:
        there, threshold = peers.intersection(self.roster.holders(self.me)), self.roster.plan.threshold
        if len(there) < threshold:
            raise AggregationAborted(f"{len(there)} of our neighbours and us {what}, and it takes {threshold}")

    def _coefficient(self) -> int:
        return field_element(self._signer.draw(_FIELD_BYTES))

    def _sign(self, stage: str, *body: bytes) -> str:
        return self._signer.sign(self.session.statement(stage, *body))

    def _forget(self) -> None:
        keys = (self._share_key, self._mask_key, self._mask_seed, self._own_seed)
        for secret in (*keys, *self._agreed.values(), *self._held.values()):
            secret[:] = bytes(len(secret))
        self._answers.pop(Stage.MASKED, None)  # the secrets of our masks
        self._agreed.clear()
        self._held.clear()

    def __repr__(self) -> str:
        return f"<Client of session {self.session.nonce[:8]} {self.stage.name.lower()}>"


def _drawn(signer: Signer) -> bytes:
    return _octets(field_element(signer.draw(_FIELD_BYTES)))


def _number(secret: bytearray) -> int:
    return int.from_bytes(secret, "little")


def _octets(number: int) -> bytes:
    return number.to_bytes(SCALAR_BYTES, "little")
