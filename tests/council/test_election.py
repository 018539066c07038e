"""Who leads, as one voter is told by peers that are played by hand. Whole worlds: test_council.py."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from p2pfl.council.council import Council, Deposed
from p2pfl.council.motions import Consult, Endorse, Endorsed, Follow, Leadership, Promised, Stand, Standing
from p2pfl.errors import CourseError, P2pflError
from p2pfl.link.memory import MemoryNetwork
from tests.council.test_consensus import certificate, committed, sign
from tests.council.test_voting import RUN, hold, node_of, peer
from tests.node.kit import until


class Puppet:
    """A voter that says what it is told to, and notes what it is asked."""

    def __init__(self):
        self.asked = []
        self.promise = Promised()
        self.standing = Standing(1, 0)

    @Consult.handler
    async def consult(self, ask: Consult, peer) -> Standing:
        self.asked.append(ask)
        return self.standing

    @Follow.handler
    async def follow(self, ask: Follow, peer) -> Standing:
        self.asked.append(ask)
        return self.standing

    @Stand.handler
    async def stand(self, ask: Stand, peer) -> Promised:
        self.asked.append(ask)
        return self.promise

    @Endorse.handler
    async def endorse(self, ask: Endorse, peer) -> Endorsed:
        self.asked.append(ask)
        return Endorsed(sign(peer.seat, ask.certificate))  # that of another


async def keep(state):
    pass


@asynccontextmanager
async def alone(seat, others):
    """A council in `seat`, and puppets in others; the puppets' peers of it."""
    network, puppets = MemoryNetwork(), {other: Puppet() for other in others}
    council = Council(RUN, seat, (0, 1, 2), keep, hold)
    async with node_of(seat, network, council) as node:
        nodes = {other: node_of(other, network, puppet, peers=[peer(seat)]) for other, puppet in puppets.items()}
        for each in nodes.values():
            await each.__aenter__()
        await until(lambda: all(each.at(seat) and node.at(other) for other, each in nodes.items()))
        running = asyncio.create_task(node.run())
        await asyncio.sleep(0.1)
        yield council, puppets, {other: each.at(seat) for other, each in nodes.items()}, nodes
        running.cancel()
        await asyncio.wait([running])
        for each in nodes.values():
            await each.stop()


async def test_it_follows_who_says_that_it_leads_until_the_link_is_lost():
    async with alone(1, [0, 2]) as (council, puppets, ask, nodes):
        assert puppets[2].asked == [Consult(1, 0)]
        assert await ask[0].ask(Follow(1, None)) == Standing(1, 0)
        assert council._election.lead == Leadership(1, 0)
        await nodes[0].stop()
        await until(lambda: council._election.lead is None)


async def test_in_the_first_term_only_the_first_seat_leads():
    async with alone(1, [0, 2]) as (council, _, ask, _):
        await ask[2].ask(Follow(1, None))
        assert council._election.lead is None
        await ask[2].ask(Follow(2, None))
        await ask[0].ask(Follow(1, None))
        assert council._election.lead == Leadership(2, 2)


async def test_who_asks_who_leads_does_not_lead():
    async with alone(1, [0, 2]) as (council, _, ask, _):
        await ask[0].ask(Follow(1, None))
        await ask[2].ask(Consult(1, 0))
        assert council._election.lead == Leadership(1, 0)
        await ask[0].ask(Consult(1, 0))
        assert council._election.lead is None


async def test_who_has_a_coordinator_promises_nothing():
    async with alone(1, [0, 2]) as (_, _, ask, _):
        await ask[0].ask(Follow(1, None))
        assert (await ask[2].ask(Stand(9, 0))).refusal.reason == "seat 0 coordinates"
        await ask[0].ask(Consult(1, 0))
        assert await ask[2].ask(Stand(9, 0)) == Promised()
        assert (await ask[0].ask(Stand(9, 0))).refusal.reason == "term 9 is promised to seat 2"


async def test_it_stands_in_its_turn():
    async with alone(1, [0, 2]) as (council, puppets, _, nodes):
        await asyncio.sleep(0.95)
        assert not council.leads
        await nodes[0].stop()
        await until(lambda: council.leads, 2)
        assert [each for each in puppets[2].asked if isinstance(each, Stand)] == [Stand(2, 0)]
        await until(lambda: Follow(2, None) in puppets[2].asked)


async def test_who_knows_more_rounds_comes_first_and_is_learned_from():
    async with alone(0, [1, 2]) as (council, puppets, _, _):
        council._election.lose(council._election.lead)
        puppets[2].standing = Standing(1, 3)
        shown = committed(round=2, by=(1, 2))
        for puppet in puppets.values():
            puppet.promise = Promised(refusal=council._voting.voter.learn(shown).refusal("you are behind", 0))
        await asyncio.sleep(1.6)  # its turn, if it knew no less
        assert not any(isinstance(each, Stand) for each in puppets[1].asked)
        await until(lambda: council.committed == shown, 3)
        assert not council.leads


async def test_a_certificate_is_endorsed_for_the_coordinator_only():
    async with alone(1, [0, 2]) as (council, _, ask, _):
        assert (await ask[2].ask(Endorse(certificate()))).refusal.reason == "term 1 is promised to seat 0"
        endorsed = await ask[0].ask(Endorse(certificate()))
        assert endorsed == Endorsed(sign(1, certificate()))
        assert council._election.lead == Leadership(1, 0)


async def test_a_signature_of_another_is_not_counted():
    async with alone(0, [1]) as (council, puppets, _, _):
        node = council._voting.node
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await council.certify(node, certificate())
        assert council.committed is None and node.violations >= 2
        assert sum(isinstance(each, Endorse) for each in puppets[1].asked) >= 2


async def test_only_who_leads_certifies_and_only_what_is_next_or_pending():
    async with alone(0, [1, 2]) as (council, _, _, _):
        node = council._voting.node
        with pytest.raises(Deposed, match="seat 0 does not coordinate in term 2"):
            await council.certify(node, certificate(term=2))
        with pytest.raises(CourseError, match=r"round 3 cannot be proposed: round 0 is next, not 3"):
            await council.certify(node, certificate(3))
        council._election.pending = certificate(model="an earlier one")
        with pytest.raises(CourseError, match="was begun by an earlier coordinator"):
            await council.certify(node, certificate(model="another"))


@pytest.mark.parametrize("motion", [Consult(1, 0), Follow(5, None), Stand(5, 0), Endorse(certificate(term=5))])
async def test_strangers_have_no_say(motion):
    async with alone(1, [0, 7]) as (council, _, ask, _):
        with pytest.raises(P2pflError, match=r"has no say here|gone|ended|closed|cut"):
            await ask[7].ask(motion)
        assert council._voting.node.violations == 1 and council._voting.voter.term == 1
