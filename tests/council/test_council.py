"""Rounds in a world where coordinators are lost: what is committed, by whom, and how soon it goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from p2pfl.council.council import Council
from p2pfl.crypto.signing import verify_signed
from p2pfl.journal.certificate import Certificate, Contribution
from p2pfl.node.node import Node
from tests.council.voters import Counting, count

OTHERS = {1, 2, 3, 4}


def test_the_first_seat_coordinates_without_an_election():
    async def story(world):
        await world.until(lambda: min(world.rounds(seat) for seat in range(5)) >= 10)
        assert world.leaders() == {0}

    world = count(Counting(5), story)
    assert {(term, seat) for _, _, term, seat in world.elected} == {(1, 0)}
    assert all(certificate.term == 1 for certificate in world.history.values())


@pytest.mark.parametrize("silently", [False, True], ids=["at once", "silently"])
@pytest.mark.parametrize("seed", range(3))
def test_another_coordinates_within_ten_seconds_when_the_coordinator_is_killed(seed, silently):
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        killed = asyncio.get_running_loop().time()
        world.world.kill(0, silently=silently, for_good=True)
        before = len(world.history)
        at = await world.until(lambda: world.leaders(*OTHERS) == {1} and len(world.history) > before + 1)
        assert at - killed < 10
        await world.until(lambda: min(world.rounds(seat) for seat in OTHERS) >= 10)

    world = count(Counting(5, seed), story)
    assert max(certificate.term for certificate in world.history.values()) == 2


def test_one_that_is_killed_with_its_successor_is_succeeded_by_the_next():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        for seat in (0, 1):
            world.world.kill(seat, for_good=True)
        await world.until(lambda: world.leaders(2, 3, 4) == {2}, seconds=10)
        before = world.rounds(2)
        await world.until(lambda: world.rounds(2) > before + 3)

    count(Counting(5), story)


@pytest.mark.parametrize("silently", [False, True], ids=["at once", "silently"])
def test_a_coordinator_in_the_minority_commits_nothing_and_catches_up_after_the_heal(silently):
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        parted = asyncio.get_running_loop().time()
        world.part({0, 1}, silently=silently)
        await asyncio.sleep(0.5)  # what was on its way
        before = max(world.rounds(0), world.rounds(1))
        at = await world.until(lambda: world.leaders(2, 3, 4) == {2} and world.rounds(2) > before)
        assert at - parted < 10
        await asyncio.sleep(10)
        assert max(world.rounds(0), world.rounds(1)) == before
        assert world.leaders(0, 1) == {None} and world.counter(0).deposed == 1
        assert any("more voters, to elect" in what for what in world.world.waits())
        ahead = world.rounds(2)
        assert ahead > before + 10
        world.heal()
        await world.until(lambda: min(world.rounds(0), world.rounds(1)) >= ahead and world.leaders() == {2})

    world = count(Counting(5), story)
    assert {term for _, _, term, _ in world.elected} == {1, 2}


def test_a_minority_without_the_coordinator_does_not_disturb_it_then_or_later():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        world.part({3, 4})
        await asyncio.sleep(0.5)
        before = world.rounds(3)
        await asyncio.sleep(20)
        assert world.rounds(3) == before < world.rounds(0) - 20
        world.heal()
        await world.until(lambda: world.rounds(3) == world.rounds(4) == world.rounds(0) and world.leaders() == {0})

    world = count(Counting(5), story)
    assert {term for _, _, term, _ in world.elected} == {1}


def test_where_no_side_has_a_quorum_nobody_commits_until_the_heal():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        world.part({0, 1})
        await asyncio.sleep(1)
        before = [world.rounds(seat) for seat in range(4)]
        await asyncio.sleep(20)
        assert [world.rounds(seat) for seat in range(4)] == before
        assert world.leaders() == {None}
        world.heal()
        await world.until(lambda: min(world.rounds(seat) for seat in range(4)) > max(before) + 3)

    count(Counting(4), story)


def test_a_coordinator_that_sees_a_quorum_no_more_makes_way_for_one_that_does():
    """Seats 1, 2 and 3 are a quorum of four; seat 1 is linked to the old coordinator all the time."""

    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        world.part({0}, but={1})
        before = world.rounds(0)
        await world.until(lambda: world.leaders(1, 2, 3) == {1} and world.rounds(3) > before + 5, seconds=20)

    count(Counting(4), story)


def test_a_coordinator_that_comes_back_follows():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        world.world.kill(0)
        await world.until(lambda: world.leaders(*OTHERS) == {1} and world.rounds(1) > 5)
        await world.world.restart(0)
        assert world.rounds(0) >= 3  # it has kept them
        await world.until(lambda: world.rounds(0) >= world.rounds(1) > 10)
        assert world.leaders() == {1}

    world = count(Counting(5), story)
    assert max(term for _, _, term, _ in world.elected) == 2


def test_the_first_coordinator_goes_on_in_its_term_if_it_is_back_before_anybody_stands():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        world.world.kill(0)
        await world.world.restart(0)
        await world.until(lambda: world.rounds(0) >= 6)

    world = count(Counting(5), story)
    assert all(certificate.term == 1 for certificate in world.history.values())


def test_a_later_coordinator_that_was_restarted_is_elected_anew():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 2)
        world.world.kill(0, for_good=True)
        await world.until(lambda: world.leaders(1, 2) == {1} and world.rounds(1) > 4)
        world.world.kill(1)
        await world.world.restart(1)
        before = world.rounds(2)
        await world.until(lambda: world.rounds(2) > before + 3)

    world = count(Counting(3), story)
    assert max(term for _, _, term, _ in world.elected) == 3


def test_all_can_be_killed_at_once_and_go_on_where_they_were():
    async def story(world):
        await world.until(lambda: world.rounds(0) >= 3)
        for seat in range(5):
            world.world.kill(seat)
        before = dict(world.history)
        for seat in range(5):
            await world.world.restart(seat)
        assert max(world.rounds(seat) for seat in range(5)) >= len(before) - 1
        await world.until(lambda: min(world.rounds(seat) for seat in range(5)) > 6)

    count(Counting(5), story)


def test_members_whose_links_flap_depose_nobody():
    async def story(world):
        for turn in range(60):
            await asyncio.sleep(0.4)
            for seat in range(5):
                world.cut(3 + turn % 2, seat)
        assert world.rounds(0) > 20
        await world.until(lambda: world.rounds(3) == world.rounds(4) == world.rounds(0))

    world = count(Counting(5), story)
    assert {term for _, _, term, _ in world.elected} == {1}


def test_a_member_that_alone_does_not_see_the_coordinator_deposes_nobody():
    """It knows as many rounds, stands again and again, and is promised nothing by those who see the coordinator."""

    async def story(world):
        await world.until(lambda: world.rounds(3) >= 1)
        world.part({3}, but={1, 2, 4})
        await asyncio.sleep(30)
        assert world.leaders(0, 1, 2, 4) == {0} and world.leaders(3) == {None}
        assert world.council(3)._voting.voter.term == 1
        world.heal()
        await world.until(lambda: world.rounds(3) == world.rounds(0) and world.leaders() == {0})

    world = count(Counting(5, round_seconds=5), story)
    assert {term for _, _, term, _ in world.elected} == {1}


@pytest.mark.parametrize("step", range(16))
def test_what_a_quorum_may_have_endorsed_is_what_the_next_coordinator_commits(step):
    """The coordinator is killed at every moment of a certification, which takes about 60 ms."""
    on_disks = {}

    async def story(world):
        await world.until(lambda: world.rounds(0) >= 2)
        await asyncio.sleep(0.28 + 0.01 * step)
        world.world.kill(0, for_good=True)
        accepted = [world.council(seat)._voting.voter.accepted for seat in range(3)]
        round = max(each.round for each in accepted if each) if any(accepted) else 0
        endorsed = [each.aggregate_hash for each in accepted if each and each.round == round]
        on_disks[round] = endorsed
        await world.until(lambda: world.rounds(1) > round + 1)

    world = count(Counting(3, seed=step), story)
    for round, endorsed in on_disks.items():
        if len(endorsed) >= 2:
            assert world.history[round].aggregate_hash == endorsed[0]


@pytest.mark.parametrize("seed", range(12))
def test_anything_may_happen_to_a_minority_and_to_the_network(seed):
    rng = Random(seed)

    async def story(world):
        down = set()
        for _ in range(25):
            await asyncio.sleep(rng.uniform(0.1, 3))
            match rng.choice(["kill", "restart", "part", "heal", "cut"]):
                case "kill" if len(down) < 2:
                    seat = rng.choice([seat for seat in range(5) if seat not in down])
                    world.world.kill(seat, silently=rng.random() < 0.5)
                    down.add(seat)
                case "restart" if down:
                    await world.world.restart(down.pop())
                case "part":
                    world.part(set(rng.sample(range(5), 2)), silently=rng.random() < 0.5)
                case "heal":
                    world.heal()
                case "cut":
                    world.cut(*rng.sample(range(5), 2))
        world.heal()
        while down:
            await world.world.restart(down.pop())
        before = max(world.rounds(seat) for seat in range(5))
        await world.until(lambda: min(world.rounds(seat) for seat in range(5)) > before + 3, seconds=90)

    count(Counting(5, seed), story)


@pytest.mark.sockets
async def test_hosts_sign_with_their_keys():
    """Three nodes with identities of their own, over WebSockets: the first coordinates, stops, and is succeeded."""

    async def keep(state):
        pass

    async def hold(certificate, peer):
        pass

    councils = [Council("a run", seat, range(3), keep, hold) for seat in range(3)]
    first = Node(councils[0], listen="127.0.0.1:0", seat=0)
    async with first, asyncio.TaskGroup() as group, asyncio.timeout(30):
        later = [Node(councils[seat], listen="127.0.0.1:0", peers=first.addresses, seat=seat) for seat in (1, 2)]
        for node in later:
            await node.__aenter__()
        running = [group.create_task(node.run()) for node in (first, *later)]
        proposal = Certificate("a run", 0, 1, "a model", (Contribution(1, later[0].id, "an update", 3),))
        signed = await councils[0].certify(first, proposal)
        known = await councils[2].commits(later[1], 0)
        assert known == signed and len(signed.signatures) >= 2  # all three, when the answers come together
        assert all(verify_signed(peer, signed.statement, signature) for peer, signature in signed.signatures.items())
        await first.stop()
        assert await councils[1].elected(later[0]) == 2
        assert councils[0].committed == councils[1].committed == signed
        assert (await councils[1].certify(later[0], replace(proposal, round=1, term=2))).term == 2
        for node, task in zip(later, running[1:], strict=True):
            await node.stop()
            task.cancel()
