"""A voter on its disk: in order, and whole, whoever is cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from p2pfl.council.consensus import Voter
from p2pfl.council.voting import Voting
from p2pfl.errors import ConfigError, JournalError, RemoteProtocolError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.node import Node
from p2pfl.sim.signer import SimulatedSigner
from tests.council.test_consensus import committed, peer
from tests.node.kit import until

RUN = "a run"


class Slow:
    """A disk that takes its time."""

    def __init__(self):
        self.states = []
        self.full = False

    async def keep(self, state):
        await asyncio.sleep(1)
        if self.full:
            raise JournalError("the disk is full")
        self.states.append(state)


async def hold(certificate, peer):
    pass


def voting_of(seat=0, voters=(0, 1, 2), keep=None, hold=hold):
    return Voting(Voter(RUN), seat, voters, keep or Slow().keep, hold)


def node_of(seat, network, *roles, **options):
    transport = network.transport(peer(seat), signer=SimulatedSigner(peer(seat)))
    return Node(*roles, transport=transport, listen=peer(seat), seat=seat, **options)


@pytest.fixture
async def entered():
    """A voting whose node is linked to seats 1 and 7."""
    network = MemoryNetwork()
    voting, disk = voting_of(), Slow()
    voting._keep = disk.keep
    async with (
        node_of(0, network) as node,
        node_of(1, network, peers=[peer(0)]),
        node_of(7, network, peers=[peer(0)]),
    ):
        await until(lambda: node.at(1) and node.at(7))
        voting.enter(node)
        yield voting, disk


async def test_a_step_counts_once_it_is_on_disk(entered):
    voting, disk = entered
    step = asyncio.create_task(voting.record(replace(voting.voter, term=2)))
    await asyncio.sleep(0.5)
    assert voting.voter.term == 1 and not disk.states
    await step
    assert voting.voter.term == 2 and disk.states[-1]["term"] == 2
    await voting.record(voting.voter)
    assert len(disk.states) == 1


async def test_who_is_cancelled_does_not_undo_a_step_and_the_next_one_comes_after_it(entered):
    voting, disk = entered

    async def step(term):
        async with voting.turn():
            await voting.record(replace(voting.voter, term=max(term, voting.voter.term + 1)))

    first = asyncio.create_task(step(2))
    await asyncio.sleep(0.5)
    first.cancel()
    await asyncio.wait([first])
    await step(2)
    assert [state["term"] for state in disk.states] == [2, 3]


async def test_a_step_that_cannot_be_kept_was_not_taken(entered):
    voting, disk = entered
    disk.full = True
    with pytest.raises(JournalError):
        await voting.record(replace(voting.voter, term=2))
    assert voting.voter.term == 1
    async with voting.turn():
        pass


async def test_voters_are_those_who_sit_in_their_seats(entered):
    voting, _ = entered
    one, seven = voting.node.at(1), voting.node.at(7)
    assert await voting.asker(one) == 1
    with pytest.raises(RemoteProtocolError, match="has no say here"):
        await voting.asker(seven)
    assert voting.linked() == {one: 1} and voting.quorum == 2 and voting.backed


async def test_a_committed_round_is_learned_with_its_model(entered):
    voting, _ = entered
    held = []

    async def hold(certificate, peer):
        held.append((certificate.round, peer))

    voting.hold = hold
    one = voting.node.at(1)
    await voting.learn(committed(by=(0,)), one)
    await voting.learn(committed(by=(0, 7)), one)
    assert voting.voter.rounds == 0 and not held
    await voting.learn(committed(round=3, by=(0, 1)), one)
    await voting.learn(committed(round=2, by=(0, 1)), one)
    assert voting.voter.rounds == 4 and held == [(3, one)]


async def test_a_round_whose_model_cannot_be_had_is_not_known(entered):
    voting, _ = entered

    async def hold(certificate, peer):
        raise JournalError("the disk is full")

    voting.hold = hold
    with pytest.raises(JournalError):
        await voting.learn(committed(by=(0, 1)), voting.node.at(1))
    assert voting.voter.rounds == 0


async def test_a_transport_that_cannot_sign_is_refused():
    node = Node(transport=MemoryNetwork().transport("a"))
    with pytest.raises(ConfigError, match=r"course.coordinator is 'elect', and <MemoryTransport of a> cannot sign"):
        voting_of().enter(node)
