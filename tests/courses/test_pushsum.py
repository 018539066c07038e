import asyncio
import math

import numpy as np
import pytest
import torch

from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.mass import Purse, whole
from p2pfl.courses.pushsum import PUSHSUM, Give, MassLost, Outcome, Pusher, PushsumSettings, Receipt
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import At, Played

STILL = TrainSpec(lr=0.0)
RING = build("ring", 4)
SLOW = DeviceSpec(examples_per_second=30)  # a round takes about a second
ONE_WAY = build("exponential", 6)


def pushsum(topology, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(PUSHSUM, PushsumSettings(**{"rounds": 4, "evaluators": 0} | more), topology, recast=recast, **own)


def scattered(played):
    """Give each seat a vector of its own to begin with; the vectors as rows."""
    x = torch.randn(played.topology.n, played.model.layout.numel, generator=torch.Generator().manual_seed(5))
    before = played.recast

    def recast(seat, roles):
        roles = before(seat, roles)
        roles[0].params, roles[0].purse = x[seat].clone(), Purse(x[seat].clone())
        return roles

    played.recast = recast
    return x.double().numpy()


def purses(played):
    return {number: seat.roles[0].purse for number, seat in played.world.seats.items()}


def ends(played):
    return torch.stack(played.params).double().numpy()


def check_mass(played, x=None):
    """I12: all mass is there, and every book is right."""
    nodes = purses(played)
    weight, value = whole(nodes)
    forfeited = sum(purse.ledger.forfeited for purse in nodes.values())
    assert weight + forfeited == pytest.approx(played.topology.n, abs=1e-9)
    assert forfeited == sum(event.weight for event in played.told(MassLost) if "may have it" not in event.reason)
    if x is not None:
        np.testing.assert_allclose(value, x.sum(0), atol=2e-5)
    assert all(abs(purse.unexplained) < 1e-9 for purse in nodes.values())


def ended(played):
    return {seat for _, seat, event in played.events if isinstance(event, CourseEnded)}


# -- averages ----------------------------------------------------------------------------------------------------------

GRAPHS = [ONE_WAY, build("star", 5), build("one-peer-exponential", 6), RING]


@pytest.mark.parametrize("topology", GRAPHS, ids=lambda topology: topology.family)
def test_without_learning_it_is_multiplication_by_the_column_stochastic_matrix(topology):
    played = pushsum(topology, train=STILL)
    x = scattered(played)
    played.play()
    p = np.eye(topology.n)
    for number in range(4):
        p = np.asarray(mixing_matrix(topology.at(number), "push-sum")) @ p
    np.testing.assert_allclose(ends(played), p @ x / p.sum(1, keepdims=True), atol=2e-6)
    check_mass(played, x)


def test_nodes_that_wait_for_nobody_agree_on_the_mean():
    devices = DeviceSpec(examples_per_second=200, spread=0.5)
    played = pushsum(ONE_WAY, rounds=40, pace="free", train=STILL, devices=devices)
    x = scattered(played)
    played.play()
    check_mass(played, x)
    assert np.abs(ends(played) - x.mean(0)).max() < 1e-3


def test_the_network_does_not_change_the_result():
    wild = NetworkSpec(latency_ms=50, latency_spread=2.0, jitter=3.0, uplink_mbps=0.5)
    for topology in (ONE_WAY, build("one-peer-exponential", 4)):
        assert pushsum(topology).play().bytes == pushsum(topology, network=wild).play().bytes


def test_on_a_regular_graph_it_is_dpsgd():
    topology = build("ring", 5)
    plain = Played(DPSGD, DpsgdSettings(rounds=3, evaluators=0), topology).play()
    np.testing.assert_allclose(ends(pushsum(topology, rounds=3).play()), ends(plain), atol=2e-5)


def test_it_learns_digits_on_a_one_way_graph():
    played = pushsum(
        build("exponential", 8), rounds=30, evaluators=-1, evaluate_every=30, seed=1, data=load_dataset(DataSpec(), 1),
        model_spec=ModelSpec("mlp", hidden=(32,)), split=PartitionSpec("dirichlet", alpha=0.3),
        train=TrainSpec(lr=0.2, batch_size=20, epochs=2, momentum=0.9),
    ).play()  # fmt: skip
    assert np.mean([played.metric("accuracy", seat)[-1] for seat in range(8)]) >= 0.9
    assert sum(played.metric("mass", seat)[-1] for seat in range(8)) == pytest.approx(8)


# -- links that break --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["rounds", "free"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mass_is_kept_while_links_break_at_random(pace, seed):
    played = pushsum(
        ONE_WAY, rounds=15, pace=pace, train=STILL, seed=seed,
        network=NetworkSpec(latency_ms=300, loss_every_seconds=8),
        devices=SLOW,
    )  # fmt: skip
    x = scattered(played)
    played.play()
    assert ended(played) == set(range(6))
    check_mass(played, x)
    assert not played.told(MassLost)


async def test_a_share_whose_acknowledgement_was_lost_is_offered_again_and_counts_once():
    """The link breaks after the share has arrived: the receiver knows it when it comes over the next link."""
    played = pushsum(build("full", 2), rounds=6, train=STILL, network=NetworkSpec(latency_ms=100), devices=SLOW)
    x = scattered(played)
    outcomes = []

    class Cuts(Pusher):
        @Give.handler
        async def give(self, ask: Give, peer) -> Receipt:
            receipt = await Pusher.give(self, ask, peer)
            outcomes.append((ask.round, receipt.outcome))
            if len(outcomes) == 2:
                played.world.memory.cut(played.world.peer_id(0), played.world.peer_id(1))
            return receipt

    def recast(seat, roles):
        pusher = before(seat, roles)[0]
        pusher.__class__ = Cuts if seat == 1 else Pusher
        return (pusher,)

    before, played.recast = played.recast, recast
    await played.run()
    assert (1, Outcome.TAKEN) in outcomes and (1, Outcome.AGAIN) in outcomes
    check_mass(played, x)
    np.testing.assert_allclose(ends(played), np.tile(x.mean(0), (2, 1)), atol=1e-5)


@pytest.mark.parametrize("pace", ["rounds", "free"])
def test_a_partition_goes_on_with_the_mass_on_its_side_and_merges_by_mass(pace):
    """0 1 2 of a ring of 6 have other values than 3 4 5; x of all is as before when they have met again."""
    played = pushsum(build("ring", 6), rounds=60, pace=pace, train=STILL, devices=SLOW, deadline_seconds=2.0)
    x = scattered(played)
    told = []

    async def weather():
        pairs = [(played.world.peer_id(a), played.world.peer_id(b)) for a in (0, 1, 2) for b in (3, 4, 5)]
        await asyncio.sleep(0.1)
        for pair in pairs:
            played.world.memory.partition(*pair)
        await asyncio.sleep(25)
        told.append(np.stack([seat.roles[0].params.double().numpy() for seat in played.world.seats.values()]))
        check_mass(played, x)
        for pair in pairs:
            played.world.memory.heal(*pair)

    played.play(weather())
    check_mass(played, x)
    (apart,) = told
    gap = np.abs(apart[:3].mean(0) - apart[3:].mean(0)).max()
    assert max(np.abs(side - side.mean(0)).max() for side in (apart[:3], apart[3:])) < 0.05 * gap, "each side agreed"
    assert np.abs(ends(played) - x.mean(0)).max() < 0.05 * gap


# -- nodes that go and come --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["rounds", "free"])
def test_who_leaves_hands_its_mass_to_a_neighbour(pace):
    played = pushsum(ONE_WAY, rounds=25, pace=pace, train=STILL, devices=SLOW)
    x = scattered(played)

    async def weather():
        await asyncio.sleep(2)
        played.world.seats[2].roles[0].leave()

    played.play(weather())
    nodes = purses(played)
    assert nodes[2].weight == 0 and not nodes[2].outgoing and not played.told(MassLost)
    check_mass(played, x)
    (reason,) = [event.reason for event in played.told(CourseEnded, 2)]
    assert reason == "we leave"
    others = [seat for seat in range(6) if seat != 2]
    np.testing.assert_allclose(ends(played)[others], np.tile(x.mean(0), (5, 1)), atol=0.02)


def test_who_leaves_when_nobody_is_there_says_that_its_mass_is_lost():
    played = pushsum(build("full", 2), rounds=25, train=STILL, devices=SLOW)

    async def weather():
        await asyncio.sleep(2)
        played.world.memory.take_offline(played.world.peer_id(0))
        played.world.seats[1].roles[0].leave()
        await asyncio.sleep(5)
        played.world.memory.bring_online(played.world.peer_id(0))

    played.play(weather())
    lost = played.told(MassLost, 1)
    assert {event.reason for event in lost} >= {"we leave, and no neighbour took it"}
    check_mass(played)


def test_the_mass_of_a_crashed_node_is_missing_and_those_who_miss_it_say_how_much():
    played = pushsum(ONE_WAY, rounds=10, train=STILL, devices=SLOW)
    played.world.mortal = True
    gone = []

    async def weather():
        await asyncio.sleep(3)
        gone.append(played.world.seats[2].roles[0].purse)
        played.world.kill(2, for_good=True)

    played.play(weather())
    nodes = purses(played)
    weight, _ = whole(nodes)
    assert weight == pytest.approx(6, abs=1e-9), "with what it had as it crashed, all is there"
    del nodes[2]
    assert 4 < whole(nodes)[0] < 6
    reasons = {event.reason for event in played.told(UpdateMissing) if event.peer == "seat 2"}
    assert any(reason.startswith("it is not linked, or late, with a mass of about 0.2") for reason in reasons)


@pytest.mark.parametrize("pace", ["rounds", "free"])
def test_who_comes_back_without_a_state_has_no_mass_and_is_given_some(pace):
    played = pushsum(ONE_WAY, rounds=40, pace=pace, devices=SLOW)
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(3)
        played.world.kill(2)
        await asyncio.sleep(7)
        await played.world.restart(2)

    played.play(weather())
    (lost,) = played.told(MassLost, 2)
    assert lost.weight == 1 and "without the state" in lost.reason
    purse = purses(played)[2]
    assert purse.weight > 0.3 and abs(purse.unexplained) < 1e-9
    assert not any(seat.node.statistics().violations for seat in played.world.seats.values())
    assert all(bool(params.isfinite().all()) for params in played.params)


def test_a_node_that_goes_on_from_its_state_plays_the_round_again_and_nothing_counts_twice():
    """It had given its shares of the round when it was killed. It offers the same ones: they are known, and it goes on.

    What others had given it in that round is lost with it, and nothing else is.
    """
    played = pushsum(ONE_WAY, rounds=20, train=STILL, devices=SLOW)
    x = scattered(played)
    before = played.recast
    played.world.mortal = True
    kept, taken, fourth = [], [], asyncio.Event()

    def recast(seat, roles):
        roles = before(seat, roles)
        if seat == 2 and kept:
            roles[0].resume(kept[-1])
        return roles

    played.recast = recast

    def watch(seconds, seat, event):
        played.events.append((seconds, seat, event))
        if seat == 2 and isinstance(event, RoundEnded) and event.round <= 4:
            kept.append(played.world.seats[2].roles[0].state())
            if event.round == 4:
                fourth.set()

    async def run():
        async with asyncio.TaskGroup() as group:
            group.create_task(weather())
            await played.world.run(watch)

    async def weather():
        await fourth.wait()
        purse = played.world.seats[2].roles[0].purse
        while purse.ledger.sent == kept[3]["ledger.sent"]:  # noqa: ASYNC110 - nothing tells of receipts
            await asyncio.sleep(0.005)
        taken.append(purse.ledger.taken - kept[3]["ledger.taken"])
        played.world.kill(2)
        await asyncio.sleep(1)
        await played.world.restart(2)

    run_virtual(run())
    assert ended(played) == set(range(6)) and not played.told(MassLost)
    weight, value = whole(purses(played))
    assert weight == pytest.approx(6 - taken[0], abs=1e-9)
    spread = np.abs(ends(played) - ends(played).mean(0)).max()
    assert spread < 0.02, "and all agree"
    assert np.abs(value.numpy() / weight - x.mean(0)).max() < 0.2, "the mean of all, but for what is lost"


# -- what peers may send -----------------------------------------------------------------------------------------------


@pytest.fixture
def pusher():
    played = pushsum(ONE_WAY)  # seats 5, 4 and 2 send to seat 0
    return Pusher(played.learner(0), played.settings, ONE_WAY)


def share(pusher, number=0, weight=0.25, value=1.0):
    return Give(number, number, weight, pusher._learner.tensors(torch.full_like(pusher.params, value)))


async def test_a_share_counts_once(pusher):
    assert (await pusher.give(share(pusher), At(5))).outcome is Outcome.TAKEN
    assert (await pusher.give(share(pusher), At(5))).outcome is Outcome.AGAIN
    assert (await pusher.give(share(pusher), At(4))).outcome is Outcome.TAKEN
    pusher.purse.merge()
    assert pusher.purse.weight == 1.5


async def test_shares_that_are_none_are_refused(pusher):
    for number, weight in ((-1, 0.5), (0, 0.0), (0, -1.0), (0, math.nan), (0, math.inf)):
        with pytest.raises(ValueError, match="none that a share can have"):
            share(pusher, number, weight)
    for ask, seat in (
        (share(pusher), 1),
        (share(pusher), None),
        (share(pusher, 4), 5),
        (share(pusher, value=math.nan), 5),
    ):
        with pytest.raises(RemoteProtocolError):
            await pusher.give(ask, At(seat))
    assert not pusher.purse.waiting


async def test_shares_of_the_far_future_do_not_pile_up():
    played = pushsum(ONE_WAY, rounds=100)
    pusher = Pusher(played.learner(0), played.settings, ONE_WAY)
    for number in range(100):
        await pusher.give(share(pusher, number), At(5))
    assert len(pusher.purse.waiting) <= 9
    pusher.purse.merge()
    assert pusher.purse.weight == 26


def test_settings_that_cannot_be_are_refused_by_name():
    for field, value in (("rounds", 0), ("pace", "slow"), ("deadline_seconds", -1.0)):
        with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
            PushsumSettings(**{field: value})


def test_the_graph_must_be_connected():
    assert PUSHSUM.needs(Topology.from_edges(4, [(0, 1), (2, 3)])) == "the graph must be connected"
    assert PUSHSUM.needs(RING) is PUSHSUM.needs(ONE_WAY) is None
