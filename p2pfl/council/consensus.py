"""How voters agree on one certificate for each round, whoever coordinates: values and rules, without I/O or a clock.

L. Lamport: "The Part-Time Parliament", ACM Transactions on Computer Systems 16(2), 1998,
https://doi.org/10.1145/279227.279229. Each round is one instance; terms are the ballots, and a term has one leader.
D. Ongaro, J. Ousterhout: "In Search of an Understandable Consensus Algorithm", USENIX ATC 2014,
https://www.usenix.org/conference/atc14/technical-sessions/presentation/ongaro. From there: one election serves all
rounds that follow, and a voter promises its term only to those who have committed all that it has.

Why two certificates for one round cannot both be committed: a quorum has endorsed the first. Any later leader has the
promises of a quorum, so of at least one voter that endorsed it; that voter shows it, or has learned that the round is
over and makes no promise to who has not. So the later leader proposes it again, under its own term.

Deviations: the first term belongs to the first seat without an election. A term of a leader that was restarted ends,
since what it found in its election is forgotten. Voters may crash, and links lose what they like; voters that lie
about what they promised are not provided for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate

__all__ = ["Candidacy", "Refusal", "Tally", "Verify", "Voter", "is_certified", "majority", "same_round"]

Verify = Callable[[str, bytes, str], bool]
"""Whether (the peer of this id, this statement, was signed so); see Signer.verifies."""


_NOBODY = -1


def majority(voters: int) -> int:
    """How many of so many voters are a quorum: any two quorums share a voter.

    >>> [majority(n) for n in (1, 2, 3, 4, 5)]
    [1, 2, 2, 3, 3]
    """
    return voters // 2 + 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a voter does not do what it was asked, and where it stands."""

    reason: str
    term: int
    rounds: int  # that are committed, as far as it knows
    committed: Certificate | None = None  # the last of them, where the asker does not know it


@dataclass(frozen=True, slots=True)
class Voter:
    """What one voter must not forget. Each step gives the voter after it: to be on disk before anybody is answered."""

    run: str
    term: int = 1  # the highest that it has promised ...
    promised: int = 0  # ... to the one who sits there
    leader: int | None = 0  # who leads in this term, once that is known: who was promised it may have lost to another
    accepted: Certificate | None = None  # endorsed last, without signatures; None once its round is committed
    committed: Certificate | None = None  # of the last round that is known to be over, with a quorum of signatures

    @property
    def rounds(self) -> int:
        """How many rounds are committed: the number of the next."""
        return 0 if self.committed is None else self.committed.round + 1

    def stand(self, term: int, seat: int, rounds: int) -> tuple[Voter, Refusal | None]:
        """Who sits in `seat` wants to lead in `term`, and knows of so many committed rounds.

        Promised is: to take part in no lower term, and in this one with nobody else. `accepted` goes with the promise.
        """
        if rounds < self.rounds:
            return self, self.refusal(f"{self.rounds} rounds are committed, not {rounds}", rounds)
        if term < self.term or (term == self.term and seat != self.promised):
            return self, self.refusal(f"term {self.term} is promised to seat {self.promised}", rounds)
        return self._entered(term, seat), None

    def endorse(self, certificate: Certificate, seat: int) -> tuple[Voter, Refusal | None]:
        """Who sits in `seat`, the leader of the certificate's term, proposes it. No refusal: it may be signed."""
        term, round = certificate.term, certificate.round
        if certificate.run != self.run:
            return self, self.refusal(f"this is run {self.run}", round)
        if not self.follows(term, seat):
            return self, self.refusal(f"term {self.term} is promised to seat {self.promised}", round)
        if round != self.rounds:
            return self, self.refusal(f"round {self.rounds} is next, not {round}", round)
        proposal = replace(certificate, signatures={})
        if self.accepted is not None and self.accepted.term == term and self.accepted != proposal:
            return self, self.refusal(f"another certificate of round {round} was endorsed in term {term}", round)
        return replace(self._entered(term, seat), leader=seat, accepted=proposal), None

    def learn(self, certificate: Certificate) -> Voter:
        """A round is over: the certificate has a quorum of signatures. Nothing of earlier rounds changes any more."""
        if certificate.run != self.run or certificate.round < self.rounds:
            return self
        accepted = self.accepted
        open_still = accepted is not None and accepted.round > certificate.round
        return replace(self, accepted=accepted if open_still else None, committed=certificate)

    def refusal(self, reason: str, known: int) -> Refusal:
        """To somebody who knows of so many committed rounds."""
        return Refusal(reason, self.term, self.rounds, self.committed if self.rounds > known else None)

    def follows(self, term: int, seat: int) -> bool:
        """Whether it takes part in a term that is led from this seat. One term has one leader."""
        return term > self.term or (term == self.term and self.leader in (None, seat))

    def _entered(self, term: int, seat: int) -> Voter:
        return self if term == self.term else replace(self, term=term, promised=seat, leader=None)

    @classmethod
    def first(cls, run: str, leader: int) -> Voter:
        """Before anything has happened: the first term is promised to this seat, which leads in it."""
        return cls(run, promised=leader, leader=leader)

    def state(self) -> Mapping[str, int | str]:
        """As a journal keeps it."""
        return {
            "term": self.term,
            "promised": self.promised,
            "leader": _NOBODY if self.leader is None else self.leader,
            "accepted": _text(self.accepted),
            "committed": _text(self.committed),
        }

    @classmethod
    def restored(cls, run: str, state: Mapping[str, Any]) -> Voter:
        """From what `state` gave. Raises JournalError for anything else."""
        try:
            term, promised, leader = int(state["term"]), int(state["promised"]), int(state["leader"])
            accepted, committed = _certificate(state["accepted"]), _certificate(state["committed"])
            return cls(run, term, promised, None if leader == _NOBODY else leader, accepted, committed)
        except (KeyError, ValueError, msgspec.DecodeError) as error:
            raise JournalError(f"this is not what a voter has kept: {error!r}") from error


@dataclass(slots=True)
class Candidacy:
    """One attempt to lead: the answers so far. The candidate's own promise is one of them, and comes last."""

    term: int
    rounds: int  # that the candidate knows to be committed
    quorum: int
    promises: dict[int, Certificate | None] = field(default_factory=dict)  # by seat: what each has accepted
    refusals: dict[int, Refusal] = field(default_factory=dict)

    def promised(self, seat: int, accepted: Certificate | None) -> None:
        """A voter has promised us the term, and shows what it endorsed last."""
        self.promises[seat] = accepted

    def refused(self, seat: int, refusal: Refusal) -> None:
        """A voter has not."""
        self.refusals[seat] = refusal

    @property
    def lacks(self) -> int:
        """How many more promises it takes."""
        return self.quorum - len(self.promises)

    @property
    def won(self) -> bool:
        """Whether we lead: only if nobody knows more rounds than we do."""
        return self.lacks <= 0 and self.ahead is None

    @property
    def ahead(self) -> tuple[int, Certificate] | None:
        """A seat that knows more committed rounds, and the last of them: we have to catch up before we stand again."""
        known = [(seat, refusal.committed) for seat, refusal in self.refusals.items()]
        found = [(seat, certificate) for seat, certificate in known if certificate is not None]
        return max(found, key=lambda each: each[1].round, default=None)

    @property
    def highest_term(self) -> int:
        """Of those that were promised to anybody, as far as we have heard."""
        return max((refusal.term for refusal in self.refusals.values()), default=0)

    @property
    def proposal(self) -> Certificate | None:
        """What the winner must propose before anything else: it may be committed. None: it is free."""
        assert self.won, "who does not lead proposes nothing"
        latest = self._latest
        return None if latest is None else replace(latest, term=self.term)

    @property
    def holders(self) -> tuple[int, ...]:
        """The seats that have endorsed what is to be proposed, so that they have its model."""
        return tuple(seat for seat, accepted in self.promises.items() if accepted and accepted == self._latest)

    @property
    def _latest(self) -> Certificate | None:
        accepted = [each for each in self.promises.values() if each is not None and each.round == self.rounds]
        return max(accepted, key=lambda each: each.term, default=None)


class Tally:
    """The signatures on one certificate."""

    def __init__(self, certificate: Certificate, quorum: int, verify: Verify) -> None:
        self.quorum = quorum
        self.signatures: dict[str, str] = {}
        self._certificate = replace(certificate, signatures={})
        self._statement = certificate.statement
        self._verify = verify

    def add(self, peer: str, signature: str) -> bool:
        """Count the signature of a voter, once. False: it did not make it."""
        if not self._verify(peer, self._statement, signature):
            return False
        self.signatures[peer] = signature
        return True

    @property
    def complete(self) -> bool:
        """Whether there are enough."""
        return len(self.signatures) >= self.quorum

    @property
    def certificate(self) -> Certificate:
        """The certificate with what was signed so far."""
        return replace(self._certificate, signatures=dict(sorted(self.signatures.items())))


def is_certified(certificate: Certificate, voters: Collection[str], quorum: int, verify: Verify) -> bool:
    """Whether a quorum of voters, given by their ids, has signed it."""
    statement, valid = certificate.statement, 0
    for peer, signature in certificate.signatures.items():
        valid += peer in voters and verify(peer, statement, signature)
        if valid >= quorum:
            return True
    return False


def same_round(one: Certificate, other: Certificate) -> bool:
    """Whether two certificates say the same of one round, in whatever terms."""
    return replace(one, term=0, signatures={}) == replace(other, term=0, signatures={})


def _text(certificate: Certificate | None) -> str:
    return "" if certificate is None else msgspec.json.encode(certificate).decode()


def _certificate(text: str) -> Certificate | None:
    return msgspec.json.decode(text, type=Certificate) if text else None
