import asyncio
import math

import pytest
import torch

from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.gossip import CaughtUp, Pace, Pull, WentOnAlone, consensus_distance
from p2pfl.courses.gossiplearning import GOSSIP_LEARNING, GossipLearningSettings
from p2pfl.courses.pushsum import PUSHSUM, PushsumSettings
from p2pfl.courses.swift import SWIFT, SwiftSettings
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played

RING = build("ring", 6)
LIVELY = NodeSettings(report_seconds=math.inf, backoff_most_seconds=2.0)  # with pings: a link that is silent ends
COURSES = {
    "dpsgd": (DPSGD, DpsgdSettings, {}),
    "dpsgd, deadline": (DPSGD, DpsgdSettings, {"deadline_seconds": 2.0}),
    "adpsgd": (ADPSGD, AdpsgdSettings, {"patience_seconds": 3.0}),
    "gossip-learning": (GOSSIP_LEARNING, GossipLearningSettings, {"period_seconds": 1.0, "account": "randomized"}),
    "swift": (SWIFT, SwiftSettings, {}),
    "pushsum": (PUSHSUM, PushsumSettings, {}),
    "pushsum, deadline": (PUSHSUM, PushsumSettings, {"deadline_seconds": 2.0}),
    "pushsum, free": (PUSHSUM, PushsumSettings, {"pace": "free"}),
}
each_course = pytest.mark.parametrize("name", COURSES)


def gossip(name, rounds, topology=RING, **more):
    """Rounds of about a second, of nodes that hold examples of few classes each."""
    course, settings, options = COURSES[name]
    options = options | {key: more.pop(key) for key in list(more) if key == "rejoin_seconds"}
    own = {
        "train": TrainSpec(lr=0.3, batch_size=8),
        "split": PartitionSpec("classes", classes_per_client=2),
        "devices": DeviceSpec(examples_per_second=24),
    }
    return Played(course, settings(rounds=rounds, **options), topology, **own | more)


def rounds_of(played, seat, after=0.0, before=math.inf):
    """Seconds and numbers of the rounds that a seat has ended in this time."""
    ends = [(at, event) for at, number, event in played.events if number == seat and isinstance(event, RoundEnded)]
    return [(at, event.round) for at, event in ends if after <= at < before]


def distances(played, after, before):
    """The consensus distances that were told in this time."""
    told = [(at, event.metrics) for at, _, event in played.events if isinstance(event, RoundEnded)]
    return [found["consensus_distance"] for at, found in told if after <= at < before and "consensus_distance" in found]


def ended(played):
    return {seat for _, seat, event in played.events if isinstance(event, CourseEnded)}


# -- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "evaluators", "rounds_of"),
    [(1, -1, [[1, 2, 3]] * 4), (2, -1, [[2, 3]] * 4), (1, 2, [[1, 2, 3], [1, 2, 3], [], []]), (5, 0, [[]] * 4)],
)
@pytest.mark.parametrize("metric", ["accuracy", "consensus_distance"])
def test_who_evaluates_and_when(every, evaluators, rounds_of, metric):
    settings = DpsgdSettings(rounds=3, evaluate_every=every, evaluators=evaluators)
    played = Played(DPSGD, settings, build("ring", 4)).play()
    for seat, rounds in enumerate(rounds_of):
        ended = played.told(RoundEnded, seat)
        assert [event.round for event in ended if metric in event.metrics] == rounds
        assert all("train_loss" in event.metrics for event in ended)


@pytest.mark.parametrize("name", ["dpsgd", "adpsgd", "pushsum"])
@pytest.mark.parametrize(("where", "names"), [("clients", ["client_accuracy"]), ("none", [])])
def test_nodes_evaluate_on_their_own_examples(name, where, names):
    course, settings, options = COURSES[name]
    played = Played(course, settings(rounds=1, evaluate=where, **options), build("ring", 4)).play()
    for seat, shard in played.shards.items():
        (ended,) = played.told(RoundEnded, seat)
        assert [name for name in ended.metrics if name.endswith("accuracy")] == names
        found = evaluate(played.params[seat], played.model, shard)
        assert not names or name == "adpsgd" or ended.metrics["client_accuracy"] == found.accuracy


def test_the_last_round_tells_how_good_the_model_is_that_is_kept():
    played = Played(DPSGD, DpsgdSettings(rounds=2), build("ring", 4)).play()
    found = evaluate(played.params[3], played.model, played.data.test)
    assert played.metric("accuracy", 3)[-1] == found.accuracy


@pytest.mark.parametrize("name", ["dpsgd", "pushsum"])
def test_the_consensus_distance_is_that_of_the_models_which_were_sent(name):
    played = gossip(name, 1, train=TrainSpec(lr=0.0))
    x = torch.randn(6, played.model.layout.numel, generator=torch.Generator().manual_seed(5))

    def recast(seat, roles):
        roles[0].params = x[seat].clone()
        if name == "pushsum":
            roles[0].purse.value = x[seat].clone()
        return roles

    played.recast = recast
    played.play()
    squares = [((x[seat] - x[[seat - 1, (seat + 1) % 6]]) ** 2).sum(1) for seat in range(6)]
    wanted = [float(square.mean().sqrt()) for square in squares]
    assert [played.metric("consensus_distance", seat)[0] for seat in range(6)] == pytest.approx(wanted, rel=1e-5)


def test_models_that_are_not_finite_have_no_distance():
    zero, far = torch.zeros(3), torch.full((3,), 2.0)
    assert consensus_distance(zero, [far, torch.full((3,), math.nan), far]) == pytest.approx(math.sqrt(12))
    assert consensus_distance(zero, []) is consensus_distance(zero, [torch.full((3,), math.inf)]) is None


# -- partitions --------------------------------------------------------------------------------------------------------


MEETING = [name for name in COURSES if name != "swift"]  # there, who is slower is alone in the end
BY_SILENCE = [name for name in MEETING if name not in ("dpsgd", "pushsum")]  # without a deadline these two need pings


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, LIVELY) for name in MEETING), *((name, None) for name in BY_SILENCE)]
)
def test_both_sides_of_a_partition_go_on_and_come_together_after_it(name, settings):
    """0 1 2 and 3 4 5 of a ring, apart from second 10 to 40."""
    played, apart = gossip(name, 70), []
    if settings is not None:
        played.world.settings = settings

    async def weather():
        pairs = [(played.world.peer_id(a), played.world.peer_id(b)) for a in (0, 1, 2) for b in (3, 4, 5)]
        await asyncio.sleep(10)
        for pair in pairs:
            played.world.memory.partition(*pair)
        await asyncio.sleep(30)
        apart.append(spread(played))
        for pair in pairs:
            played.world.memory.heal(*pair)

    played.play(weather())
    for seat in range(6):
        assert len(rounds_of(played, seat, 15, 40)) >= 5, "it went on"
    assert spread(played) < 0.7 * apart[0], "they have come together"
    healed, later = distances(played, 41, 46), distances(played, 60, math.inf)
    assert sum(later) / len(later) < sum(healed) / len(healed)
    assert all(map(math.isfinite, distances(played, 0, math.inf)))
    assert all(bool(params.isfinite().all()) for params in played.params)
    assert ended(played) == set(range(6))


def spread(played):
    x = torch.stack(played.params)
    return float((x - x.mean(0)).norm(dim=1).max())


# -- nodes that go, and come back --------------------------------------------------------------------------------------


@each_course
def test_a_node_that_is_gone_for_good_stalls_nobody(name):
    played = gossip(name, 15)
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(5)
        played.world.kill(1, for_good=True)

    played.play(weather())
    assert ended(played) == {0, 2, 3, 4, 5}
    assert all(len(rounds_of(played, seat)) == 15 for seat in (0, 2, 3, 4, 5))


@each_course
def test_a_node_that_was_killed_and_comes_back_without_a_state_takes_part_within_five_seconds(name):
    played = gossip(name, 40)
    played.world.mortal = True
    back = 25.0

    async def weather():
        await asyncio.sleep(5)
        played.world.kill(1)
        await asyncio.sleep(back - 5)
        await played.world.restart(1)

    played.play(weather())
    (caught,) = played.told(CaughtUp, 1)
    assert caught.behind == 1 and caught.round > 8
    first = rounds_of(played, 1, back)[0]
    assert first[0] < back + 5 and first[1] == caught.round
    assert all(len(rounds_of(played, seat, 6, back)) >= 8 for seat in (0, 2, 3, 4, 5)), "the others went on"
    assert ended(played) == set(range(6))


@each_course
def test_a_node_that_comes_back_while_another_is_gone_for_good_does_not_wait_for_that_one(name):
    played = gossip(name, 30)
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(4)
        played.world.kill(2, for_good=True)
        await asyncio.sleep(4)
        played.world.kill(1)
        await asyncio.sleep(6)
        await played.world.restart(1)

    played.play(weather())
    assert rounds_of(played, 1, 14)[0][0] < 14 + 5 + 1.5
    assert ended(played) == {0, 1, 3, 4, 5}


@each_course
def test_a_node_that_goes_on_from_its_state_is_heard_again(name):
    played = gossip(name, 30)
    played.world.mortal = True
    kept = []

    def recast(seat, roles):
        if seat == 1 and kept:
            roles[0].resume(kept[0])
        return roles

    played.recast = recast

    async def weather():
        await asyncio.sleep(6)
        kept.append(played.world.seats[1].roles[0].state())
        played.world.kill(1)
        await asyncio.sleep(1)
        await played.world.restart(1)

    played.play(weather())
    assert ended(played) == set(range(6))
    assert rounds_of(played, 1, 7)[0][1] >= int(kept[0]["round"]) + 1


def deserted(name, killed, kept):
    """Seat 1 is killed, then its neighbours are for good; it comes back among those who are still there."""
    played = gossip(name, 12, rejoin_seconds=3.0)
    played.world.mortal = True

    def recast(seat, roles):
        if seat == 4:
            roles[0]._learner.compute.examples_per_second /= 4  # so that the others are there for long
        if seat == 1 and kept:
            roles[0].resume(kept[0])
        return roles

    played.recast = recast

    async def weather():
        await asyncio.sleep(killed)
        state = played.world.seats[1].roles[0].state()
        for seat, for_good in ((1, False), (0, True), (2, True)):
            played.world.kill(seat, for_good=for_good)
        await asyncio.sleep(1)
        if kept is not None:
            kept.append(state)
        await played.world.restart(1)

    played.play(weather())
    return played


@each_course
def test_a_node_that_comes_back_to_nobody_goes_on_alone(name):
    kept = []
    played = deserted(name, 4.0, kept)
    (alone,) = played.told(WentOnAlone, 1)
    assert alone.round == int(kept[0]["round"]) + 1 > 1
    assert str(alone) == f"nobody of seats 0, 2 is there any more: it goes on alone in round {alone.round}"
    assert [number for _, number in rounds_of(played, 1, 5)] == list(range(alone.round, 13))
    assert ended(played) == {1, 3, 4, 5}


def test_a_node_that_comes_when_all_have_left_plays_alone_where_nobody_waits_for_others():
    played = deserted("swift", 4.0, None)
    assert [alone.round for alone in played.told(WentOnAlone, 1)] == [1]
    assert [number for _, number in rounds_of(played, 1, 5)] == list(range(1, 13))
    assert ended(played) == {1, 3, 4, 5}


@pytest.mark.parametrize("name", [name for name in COURSES if name not in ("adpsgd", "swift", "pushsum, free")])
def test_a_node_that_was_cut_off_for_long_goes_on_where_its_neighbours_are(name):
    played = gossip(name, 40)

    async def weather():
        await asyncio.sleep(5)
        played.world.memory.take_offline(played.world.peer_id(1))
        played.world.seats[1].device.examples_per_second /= 15  # it does next to nothing meanwhile
        await asyncio.sleep(20)
        played.world.seats[1].device.examples_per_second *= 15
        played.world.memory.bring_online(played.world.peer_id(1))

    played.play(weather())
    assert [event.peer for event in played.told(CaughtUp, 1)] in (["seat 0"], ["seat 2"])
    assert ended(played) == set(range(6))
    assert not any(seat.node.statistics().violations for seat in played.world.seats.values())


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_who_is_behind_all_that_it_hears_goes_on_where_they_are():
    pace = Pace()
    pace.note(1, 9)
    assert not pace.is_beyond([1, 2], 5), "nothing is known of seat 2"
    pace.note(2, 8)
    assert not pace.is_beyond([1, 2], 5) and pace.is_beyond([1, 2], 4) and not pace.is_beyond([], 4)
    pace.note(1, 3)
    assert not pace.is_beyond([1, 2], 4), "it has come back from behind"
    assert pace.reached(1, 3) and not pace.reached(1, 4)


def test_a_model_is_given_to_those_only_who_are_behind():
    learner = gossip("dpsgd", 1).learner(0)
    assert Pull(5).answer(learner, 8, learner.model.initial, over=False).params is None
    for round, over in ((9, False), (6, True)):
        answer = Pull(5).answer(learner, round, learner.model.initial, over=over)
        assert answer.round == round and torch.equal(learner.vector(answer.params), learner.model.initial)
    assert Pull(5).answer(learner, 5, learner.model.initial, over=True).params is None
