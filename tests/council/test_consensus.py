"""Paxos by the round: random histories of a small network against what must hold, and all short ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pfl.council.consensus import Candidacy, Refusal, Tally, Voter, is_certified, majority, same_round
from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate, Contribution
from tests.council.paxos import RUN, Net, peer, sign, verify


def certificate(round=0, term=1, model="m", run=RUN):
    return Certificate(run, round, term, model, (Contribution(1, peer(1), "u", 2.0),))


def committed(round=0, term=1, model="m", by=(0, 1, 2)):
    found = certificate(round, term, model)
    for seat in by:
        found = found.signed(peer(seat), sign(seat, found))
    return found


# -- voters ------------------------------------------------------------------------------------------------------------


def test_a_voter_endorses_the_first_coordinator_without_an_election():
    voter, refusal = Voter(RUN).endorse(certificate(), seat=0)
    assert refusal is None
    assert voter.accepted == certificate() and voter.rounds == 0


def test_it_promises_higher_terms_only_and_each_to_one():
    voter, refusal = Voter(RUN).stand(2, seat=1, rounds=0)
    assert refusal is None and (voter.term, voter.promised, voter.leader) == (2, 1, None)
    assert voter.stand(2, seat=1, rounds=0) == (voter, None)  # asked again: the answer was lost
    for term, seat in ((2, 2), (1, 0)):
        same, refusal = voter.stand(term, seat, rounds=0)
        assert same is voter
        assert refusal == Refusal("term 2 is promised to seat 1", 2, 0)


def test_it_endorses_nothing_of_lower_terms_or_of_somebody_else():
    voter, _ = Voter(RUN).stand(3, seat=1, rounds=0)
    voter, _ = voter.endorse(certificate(term=3), seat=1)
    for term, seat in ((2, 0), (3, 0), (1, 1)):
        same, refusal = voter.endorse(certificate(term=term), seat)
        assert same is voter and refusal.term == 3
    voter, refusal = voter.endorse(certificate(term=4), seat=2)  # it was elected by others
    assert refusal is None and (voter.term, voter.promised, voter.leader) == (4, 2, 2)


def test_who_lost_its_vote_for_another_follows_the_winner():
    """A quorum has promised the term to seat 2: nobody else can lead in it."""
    voter, _ = Voter(RUN).stand(3, seat=1, rounds=0)
    voter, refusal = voter.endorse(certificate(term=3), seat=2)
    assert refusal is None and (voter.promised, voter.leader) == (1, 2)
    assert voter.stand(3, seat=2, rounds=0)[1] is not None
    assert voter.endorse(certificate(term=3), seat=1)[1] is not None


def test_it_endorses_the_next_round_only():
    voter = Voter(RUN).learn(committed(round=4))
    for round, known in ((4, True), (3, True), (6, False)):
        same, refusal = voter.endorse(certificate(round), seat=0)
        assert same is voter and refusal.rounds == 5
        assert refusal.committed == (committed(round=4) if known else None)
    assert voter.endorse(certificate(5), seat=0)[1] is None


def test_it_endorses_one_certificate_in_a_term_and_the_same_one_again():
    voter, _ = Voter(RUN).endorse(certificate(model="a"), seat=0)
    assert voter.endorse(certificate(model="a"), seat=0) == (voter, None)
    same, refusal = voter.endorse(certificate(model="b"), seat=0)
    assert same is voter and refusal.reason == "another certificate of round 0 was endorsed in term 1"
    voter, refusal = voter.endorse(certificate(term=2, model="b"), seat=1)
    assert refusal is None and voter.accepted.aggregate_hash == "b"


def test_another_run_is_none_of_its_business():
    assert Voter(RUN).endorse(certificate(run="another"), seat=0)[1].reason == "this is run a run"
    assert Voter(RUN).learn(replace(committed(), run="another")).committed is None


def test_who_knows_fewer_rounds_gets_no_promise_but_the_last_round():
    voter = Voter(RUN).learn(committed(round=1))
    same, refusal = voter.stand(9, seat=1, rounds=1)
    assert same is voter
    assert refusal == Refusal("2 rounds are committed, not 1", 1, 2, committed(round=1))
    assert voter.stand(9, seat=1, rounds=2)[1] is None


def test_a_round_that_is_over_is_over():
    voter, _ = Voter(RUN).endorse(certificate(), seat=0)
    voter = voter.learn(committed(round=3))
    assert voter.rounds == 4 and voter.accepted is None
    assert voter.learn(committed(round=2)) is voter
    voter, _ = voter.endorse(certificate(4), seat=0)
    assert voter.learn(committed(round=3)) is voter
    assert voter.accepted == certificate(4)


def test_what_it_kept_is_what_it_was():
    voter, _ = Voter(RUN).learn(committed(round=3)).endorse(certificate(4, term=7), seat=2)
    assert Voter.restored(RUN, voter.state()) == voter
    first = Voter.first(RUN, leader=3)
    assert Voter.restored(RUN, first.state()) == first
    assert Voter.restored(RUN, first.stand(2, seat=4, rounds=0)[0].state()).leader is None


@pytest.mark.parametrize("wrong", [{}, {"term": "x"}, {"accepted": "{"}, {"committed": "[]"}])
def test_what_is_damaged_is_not_restored(wrong):
    with pytest.raises(JournalError, match="this is not what a voter has kept"):
        Voter.restored(RUN, {**Voter(RUN).state(), **wrong} if wrong else {})


# -- candidacies and tallies -------------------------------------------------------------------------------------------


def test_a_candidate_needs_a_quorum_and_proposes_what_was_accepted_in_the_highest_term():
    candidacy = Candidacy(term=5, rounds=2, quorum=3)
    candidacy.promised(0, certificate(2, term=2, model="old"))
    candidacy.promised(1, certificate(2, term=4, model="new"))
    candidacy.refused(4, Refusal("no", 9, 2))
    assert not candidacy.won and candidacy.lacks == 1 and candidacy.highest_term == 9
    candidacy.promised(1, certificate(2, term=4, model="new"))  # it said so before
    assert not candidacy.won
    candidacy.promised(2, None)
    assert candidacy.won
    assert candidacy.proposal == certificate(2, term=5, model="new")
    assert candidacy.holders == (1,)


def test_it_is_free_where_nothing_of_its_round_was_accepted():
    candidacy = Candidacy(term=5, rounds=2, quorum=2)
    candidacy.promised(0, certificate(1, term=4))
    candidacy.promised(1, None)
    assert candidacy.won and candidacy.proposal is None


def test_it_does_not_win_before_it_has_caught_up():
    candidacy = Candidacy(term=5, rounds=2, quorum=2)
    candidacy.promised(0, None)
    candidacy.refused(2, Refusal("you are behind", 1, 3, committed(round=2)))
    candidacy.refused(3, Refusal("you are behind", 1, 4, committed(round=3)))
    candidacy.promised(1, None)
    assert not candidacy.won and candidacy.ahead == (3, committed(round=3))


def test_a_tally_counts_genuine_signatures_once():
    tally = Tally(certificate(), quorum=2, verify=verify)
    assert tally.add(peer(1), sign(1, certificate()))
    assert tally.add(peer(1), sign(1, certificate()))
    assert not tally.add(peer(2), sign(1, certificate()))
    assert not tally.add(peer(2), sign(2, certificate(term=2)))
    assert not tally.complete
    assert tally.add(peer(0), sign(0, certificate()))
    assert tally.complete
    assert tally.certificate == committed(by=(0, 1))
    assert is_certified(tally.certificate, {peer(0), peer(1), peer(2)}, 2, verify)


def test_a_certificate_counts_with_a_quorum_of_voters():
    voters = {peer(seat) for seat in range(3)}
    assert not is_certified(committed(by=(0,)), voters, 2, verify)
    assert not is_certified(committed(by=(0, 5, 6)), voters, 2, verify)
    assert not is_certified(replace(committed(by=(0, 1)), aggregate_hash="other"), voters, 2, verify)
    assert not is_certified(committed(by=(0,)).signed(peer(1), sign(2, certificate())), voters, 2, verify)


def test_the_same_round_in_another_term_is_the_same_round():
    assert same_round(committed(term=1), certificate(term=2))
    assert not same_round(certificate(), certificate(model="other"))
    assert not same_round(certificate(), certificate(round=1))


@pytest.mark.parametrize("n", range(1, 9))
def test_two_quorums_share_a_voter_and_a_minority_is_none(n):
    quorum = majority(n)
    assert 2 * quorum > n >= quorum
    assert n - quorum < quorum


# -- together ----------------------------------------------------------------------------------------------------------


class Rounds(RuleBasedStateMachine):
    """Any number of rounds and terms, and anything that a network and crashes can do."""

    @initialize(n=st.integers(1, 5))
    def begin(self, n):
        self.net = Net.of(n)
        self.proposals = 0

    @rule(data=st.data())
    @precondition(lambda self: self.net.sent)
    def deliver(self, data):
        messages = sorted(self.net.sent, key=repr)
        message = data.draw(st.sampled_from(messages))
        self.net = self.net.deliver(message, data.draw(self.seats()))

    @rule(data=st.data())
    def everybody_hears(self, data):
        """So that histories get on."""
        for message in sorted(self.net.sent, key=repr)[-8:]:
            for seat in data.draw(st.permutations(range(len(self.net.members)))):
                self.net = self.net.deliver(message, seat)

    @rule(data=st.data())
    def stand(self, data):
        self.net = self.net.stand(data.draw(self.seats()))

    @rule(data=st.data())
    def propose(self, data):
        self.proposals += 1
        self.net = self.net.propose(data.draw(self.seats()), f"model {self.proposals}")

    @rule(data=st.data())
    def crash(self, data):
        self.net = self.net.crash(data.draw(self.seats()))

    @invariant()
    def one_certificate_for_a_round(self):
        self.net.check()

    def seats(self):
        return st.integers(0, len(self.net.members) - 1)


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def explore(net, candidates, crashes, most_rounds=1, most=10**6):
    """All states that three voters can come to; how many. `candidates`: the highest term each seat stands for."""
    seen, waiting = {net.key}, [net]
    while waiting:
        net = waiting.pop()
        for after in following(net, candidates, crashes, most_rounds):
            if after is not net and (key := after.key) not in seen:
                after.check()
                seen.add(key)
                waiting.append(after)
                assert len(seen) < most
    return len(seen)


def following(net, candidates, crashes, most_rounds):
    for message in net.sent:
        for seat in range(len(net.members)):
            yield net.deliver(message, seat)
    for seat, member in enumerate(net.members):
        if member.standing is None and member.leads is None and member.voter.term < candidates.get(seat, 0):
            yield net.stand(seat)
        if member.leads is not None and member.voter.rounds < most_rounds:
            yield net.propose(seat, f"of {seat} in {member.leads}")
        if seat in crashes:
            yield net.crash(seat)


@pytest.mark.parametrize(
    ("candidates", "crashes", "states"),
    [({1: 2}, (0,), 9000), ({1: 2, 2: 2}, (), 10000)],
    ids=["the coordinator is lost, or crashes and comes back", "two stand at once"],
)
def test_all_histories_of_three_voters_and_one_round(candidates, crashes, states):
    assert explore(Net.of(3), candidates, crashes) > states
