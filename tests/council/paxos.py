"""A network of voters as one value: every message that was ever sent may arrive, at any time, any number of times.

So delays, duplicates, losses and disorder need no rules of their own. What a member holds outside its voter is gone
when it crashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from p2pfl.council.consensus import Candidacy, Tally, Voter, is_certified, majority
from p2pfl.journal.certificate import Certificate, Contribution
from p2pfl.sim.signer import SimulatedSigner

RUN = "a run"


class Value(NamedTuple):
    """A certificate without signatures, to be compared and counted."""

    round: int
    term: int
    model: str

    @property
    def certificate(self) -> Certificate:
        return Certificate(RUN, self.round, self.term, self.model, (Contribution(1, peer(1), "u", 2.0),))

    @classmethod
    def of(cls, certificate: Certificate) -> Value:
        return cls(certificate.round, certificate.term, certificate.aggregate_hash)


def peer(seat: int) -> str:
    return f"seat{seat:07d}"


def sign(seat: int, certificate: Certificate) -> str:
    return SimulatedSigner(peer(seat)).sign(certificate.statement)


verify = SimulatedSigner(peer(0)).verifies


@dataclass(frozen=True)
class Member:
    """A voter, and what its process holds."""

    voter: Voter
    standing: tuple[int, int] | None = None  # term, rounds
    promises: tuple[tuple[int, Value | None], ...] = ()
    leads: int | None = None  # in this term
    pending: Value | None = None
    signatures: tuple[int, ...] = ()  # seats that have endorsed what it proposes

    @property
    def key(self) -> tuple:
        voter = self.voter
        kept = voter.term, voter.promised, voter.leader, _value(voter.accepted), _value(voter.committed)
        return kept, self.standing, self.promises, self.leads, self.pending, self.signatures


@dataclass(frozen=True)
class Net:
    """`sent` only grows. `chosen`: what a quorum has endorsed in one term, whether or not anybody knows it."""

    members: tuple[Member, ...]
    sent: frozenset[tuple] = frozenset()
    endorsed: frozenset[tuple[int, Value]] = frozenset()
    leaders: frozenset[tuple[int, int]] = field(default=frozenset({(1, 0)}))  # term, seat

    @classmethod
    def of(cls, n: int) -> Net:
        first = Member(Voter(RUN), leads=1)
        return cls((first, *(Member(Voter(RUN)) for _ in range(n - 1))))

    @property
    def quorum(self) -> int:
        return majority(len(self.members))

    @property
    def key(self) -> tuple:
        """For sets of states; certificates hold a dict and have no hash."""
        return tuple(each.key for each in self.members), self.sent, self.leaders

    # -- what can be done ------------------------------------------------------------------------------------------

    def stand(self, seat: int) -> Net:
        voter = self.members[seat].voter
        member = Member(voter, standing=(voter.term + 1, voter.rounds))
        return self._with(seat, member)._send("stand", seat, voter.term + 1, voter.rounds)._promise_own(seat)

    def propose(self, seat: int, model: str) -> Net:
        """The coordinator endorses first, and does so before anybody hears of it."""
        member = self.members[seat]
        if member.leads is None:
            return self
        value = Value(member.voter.rounds, member.leads, model)
        if member.pending is not None and member.pending.round == value.round:
            value = member.pending
        voter, refusal = member.voter.endorse(value.certificate, seat)
        if refusal is not None:
            return self
        fresh = value != _value(member.voter.accepted)
        member = replace(member, voter=voter, signatures=(seat,) if fresh else member.signatures or (seat,))
        return self._with(seat, member)._note(seat, value)._send("propose", seat, value)._commit(seat)

    def crash(self, seat: int) -> Net:
        """What was on disk is what is left. A coordinator of the first term is one still, as in Election.run."""
        voter = Voter.restored(RUN, self.members[seat].voter.state())
        if (voter.term, voter.leader, seat) != (1, 0, 0):
            return self._with(seat, Member(voter))
        return self._with(seat, Member(voter, leads=1, pending=_value(voter.accepted)))

    def deliver(self, message: tuple, seat: int) -> Net:
        """One message reaches a seat (those that are not for it change nothing)."""
        kind, source, *rest = message
        if source == seat:
            return self
        return getattr(self, f"_on_{kind}")(seat, source, *rest)

    # -- what becomes of it ----------------------------------------------------------------------------------------

    def _on_stand(self, seat: int, source: int, term: int, rounds: int) -> Net:
        voter, refusal = self.members[seat].voter.stand(term, source, rounds)
        if refusal is not None:
            return self if refusal.committed is None else self._send("committed", seat, *_shown(refusal.committed))
        accepted = _value(voter.accepted)
        return self._step(seat, voter)._send("promise", seat, source, term, rounds, accepted)

    def _on_promise(self, seat: int, source: int, to: int, term: int, rounds: int, accepted: Value | None) -> Net:
        member = self.members[seat]
        if to != seat or member.standing != (term, rounds):
            return self
        promises = tuple(sorted({*member.promises, (source, accepted)}, key=repr))
        return self._with(seat, replace(member, promises=promises))._promise_own(seat)

    def _promise_own(self, seat: int) -> Net:
        member = self.members[seat]
        candidacy = self._candidacy(member)
        if candidacy.lacks > 1:
            return self
        voter, refusal = member.voter.stand(candidacy.term, seat, candidacy.rounds)
        if refusal is not None:
            return self._with(seat, Member(member.voter))
        candidacy.promised(seat, voter.accepted)
        if not candidacy.won:
            return self
        pending = _value(candidacy.proposal)
        net = self._with(seat, Member(voter, leads=candidacy.term, pending=pending))
        return replace(net, leaders=net.leaders | {(candidacy.term, seat)})

    def _candidacy(self, member: Member) -> Candidacy:
        candidacy = Candidacy(*member.standing, self.quorum)
        for seat, accepted in member.promises:
            candidacy.promised(seat, accepted and accepted.certificate)
        return candidacy

    def _on_propose(self, seat: int, source: int, value: Value) -> Net:
        voter, refusal = self.members[seat].voter.endorse(value.certificate, source)
        if refusal is not None:
            return self
        return self._step(seat, voter)._note(seat, value)._send("endorse", seat, source, value)

    def _on_endorse(self, seat: int, source: int, to: int, value: Value) -> Net:
        member = self.members[seat]
        if to != seat or member.leads != value.term or member.voter.accepted is None:
            return self
        if Value.of(member.voter.accepted) != value:
            return self
        signatures = tuple(sorted({*member.signatures, source}))
        return self._with(seat, replace(member, signatures=signatures))._commit(seat)

    def _commit(self, seat: int) -> Net:
        member = self.members[seat]
        accepted = member.voter.accepted
        tally = Tally(accepted, self.quorum, verify)
        for each in member.signatures:
            assert tally.add(peer(each), sign(each, accepted))
        if not tally.complete:
            return self
        assert is_certified(tally.certificate, {peer(each) for each in range(len(self.members))}, self.quorum, verify)
        net = self._with(seat, replace(member, voter=member.voter.learn(tally.certificate), signatures=()))
        return net._send("committed", seat, *_shown(tally.certificate))

    def _on_committed(self, seat: int, source: int, value: Value, signers: tuple[int, ...]) -> Net:
        certificate = value.certificate
        for each in signers:
            certificate = certificate.signed(peer(each), sign(each, certificate))
        return self._step(seat, self.members[seat].voter.learn(certificate))

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _step(self, seat: int, voter: Voter) -> Net:
        """A voter that has promised a higher term does not lead in a lower one."""
        member = self.members[seat]
        leads = member.leads if voter.term == member.leads else None
        return self._with(seat, replace(member, voter=voter, leads=leads))

    def _with(self, seat: int, member: Member) -> Net:
        members = (*self.members[:seat], member, *self.members[seat + 1 :])
        return replace(self, members=members)

    def _send(self, *message: object) -> Net:
        return replace(self, sent=self.sent | {message})

    def _note(self, seat: int, value: Value) -> Net:
        return replace(self, endorsed=self.endorsed | {(seat, value)})

    # -- what must hold --------------------------------------------------------------------------------------------

    def chosen(self) -> dict[int, set[str]]:
        """By round: the models that a quorum has endorsed in one term, known to anybody or not."""
        found: dict[int, set[str]] = {}
        for value in {value for _, value in self.endorsed}:
            if sum(each == value for _, each in self.endorsed) >= self.quorum:
                found.setdefault(value.round, set()).add(value.model)
        return found

    def check(self) -> None:
        chosen = self.chosen()
        assert all(len(models) == 1 for models in chosen.values()), f"two certificates of one round: {chosen}"
        terms = [term for term, _ in self.leaders]
        assert len(terms) == len(set(terms)), f"two coordinators in one term: {sorted(self.leaders)}"
        for member in self.members:
            if member.voter.committed is not None:
                value = Value.of(member.voter.committed)
                assert chosen[value.round] == {value.model}, "what is committed was not endorsed by a quorum"
            if member.leads is not None and member.leads == max(terms) and member.voter.rounds in chosen:
                accepted = _value(member.voter.accepted)
                next_round = member.voter.rounds, member.leads
                bound = {each.model for each in (member.pending, accepted) if each and each[:2] == next_round}
                assert bound == chosen[member.voter.rounds], "a coordinator has forgotten what was chosen before it"


def _value(certificate: Certificate | None) -> Value | None:
    return None if certificate is None else Value.of(certificate)


def _shown(certificate: Certificate) -> tuple[Value, tuple[int, ...]]:
    return Value.of(certificate), tuple(int(each.removeprefix("seat")) for each in certificate.signatures)
