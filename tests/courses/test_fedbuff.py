"""Asynchronous aggregation against a simulation by hand, and what ends a round."""

import heapq
from dataclasses import replace

import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.app.trial import Trial
from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedbuff import FEDASYNC, FEDBUFF, AsyncSettings, FedAsyncSettings, FedBuffSettings
from p2pfl.courses.learner import seed_of
from p2pfl.courses.staleness import Staleness
from p2pfl.errors import ConfigError
from p2pfl.node.events import PeerLost, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played, fit
from tests.courses.test_failures import Ailing
from tests.courses.test_fedavg import offline

NEAR = NetworkSpec(latency_ms=0.0, uplink_mbps=1e6, downlink_mbps=1e6, coordinator_mbps=1e6)
SPREAD = DeviceSpec(examples_per_second=10.0, spread=1.0)
CLIENTS = 6


def played(settings, **more):
    course = FEDASYNC if isinstance(settings, FedAsyncSettings) else FEDBUFF
    more = {"network": NEAR, "devices": SPREAD, **more}
    return Played(course, replace(settings, evaluate="none"), build("star", CLIENTS + 1), **more).play()


def by_hand(done):
    """The same with a heap and no network: the models of all rounds, how stale they were, and when they were there."""
    settings, now, params = done.settings, 0.0, done.model.initial
    goal = getattr(settings, "goal", 1)
    seconds = {
        seat: len(shard) / done.world.seats[seat].device.examples_per_second for seat, shard in done.shards.items()
    }
    training, found = [], []
    for version in range(settings.rounds):
        for seat in set(seconds) - {entry[1] for entry in training}:
            heapq.heappush(training, (now + seconds[seat], seat, version, params))
        came = []
        while training and len(came) < goal:
            now, seat, began, start = heapq.heappop(training)
            seed = seed_of(done.seed, "fit", began, seat)
            after = fit(start, done.model, done.shards[seat], done.train, seed, began).params
            came.append((len(done.shards[seat]), version - began, start, after))
        keeps = [settings.staleness(age) for _, age, _, _ in came]
        if isinstance(settings, FedAsyncSettings):
            share = settings.mixing * keeps[0]
            params = (1 - share) * params + share * came[0][3]
        else:
            steps = sum(n * keep * (after - start) for keep, (n, _, start, after) in zip(keeps, came, strict=True))
            params = params + settings.server_lr * steps / sum(n for n, *_ in came)
        found.append((params, sum(age for _, age, *_ in came) / len(came), now))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        FedBuffSettings(rounds=12, goal=2),
        FedBuffSettings(rounds=8, goal=3, server_lr=0.7, discount="hinge", discount_a=2.0, discount_b=1.0),
        FedBuffSettings(rounds=8, goal=1, discount="constant", broadcast="after_aggregating"),
        FedBuffSettings(rounds=4, goal=CLIENTS + 3),
        FedAsyncSettings(rounds=15, mixing=0.5),
    ],
)
def test_it_is_what_a_heap_makes_of_it(settings):
    done = played(settings)
    wanted = by_hand(done)
    assert torch.allclose(done.params[0], wanted[-1][0], atol=2e-5)
    assert done.metric("staleness") == [age for _, age, _ in wanted]
    times = [seconds for seconds, _, event in done.events if isinstance(event, RoundEnded)]
    assert times == pytest.approx([at for *_, at in wanted], abs=1e-3)


def test_that_waits_for_all_is_federated_averaging():
    settings = FedBuffSettings(rounds=5, goal=CLIENTS)
    plain = Played(FEDAVG, FedAvgSettings(rounds=5, evaluate="none"), build("star", CLIENTS + 1), devices=SPREAD).play()
    assert torch.allclose(played(settings).params[0], plain.params[0], atol=2e-5)


def test_a_round_ends_when_its_time_is_up_if_there_is_something():
    settings = FedBuffSettings(rounds=6, goal=CLIENTS, time_seconds=1.0)
    done = played(settings)
    began = {event.round: seconds for seconds, _, event in done.events if isinstance(event, RoundStarted)}
    ended = {
        event.round: (seconds, event.participants) for seconds, _, event in done.events if isinstance(event, RoundEnded)
    }
    taken = [(ended[round][0] - began[round], ended[round][1]) for round in began]
    assert any(count < CLIENTS for _, count in taken) and all(count >= 1 for _, count in taken)
    assert all(seconds == pytest.approx(round(seconds)) for seconds, _ in taken)
    assert max(seconds for seconds, _ in taken) >= 1


@pytest.mark.parametrize(("broadcast", "count"), [("after_receiving", 3), ("after_aggregating", 2)])
def test_others_are_asked_after_receiving_or_after_aggregating(broadcast, count):
    done = played(FedBuffSettings(rounds=4, goal=3, concurrency=2, broadcast=broadcast))
    assert [event.participants for event in done.told(RoundStarted)] == [2] * 4
    assert [event.participants for event in done.told(RoundEnded)] == [count] * 4


def test_what_is_too_stale_is_dropped_and_named():
    done = played(FedBuffSettings(rounds=12, goal=2, staleness_tolerance=0, exclude_after=0))
    assert set(done.metric("staleness")) == {0.0}
    dropped = done.told(UpdateMissing)
    assert dropped and {event.cause for event in dropped} == {"late"}
    assert dropped[0].reason.endswith("course.staleness_tolerance is 0")


def test_training_that_fails_or_hangs_frees_its_place():
    ills = {1: {0: OSError("full")}, 2: {0: None}}

    def recast(seat, roles):
        for role in roles:
            if seat in ills:
                object.__setattr__(role._learner, "compute", Ailing(role._learner.compute, ills[seat]))
        return roles

    settings = FedBuffSettings(rounds=30, goal=2, deadline_seconds=1.0)
    done = played(settings, recast=recast, devices=DeviceSpec(100.0))
    causes = {(event.peer, event.cause) for event in done.told(UpdateMissing)}
    assert causes == {("seat 1", "failed"), ("seat 2", "late")}
    assert [event.participants for event in done.told(RoundEnded)] == [2] * 30


def test_a_client_that_was_cut_off_is_asked_again():
    settings = FedBuffSettings(rounds=3, goal=CLIENTS, evaluate="none")
    still, shaken = (Played(FEDBUFF, settings, build("star", CLIENTS + 1), devices=SPREAD) for _ in range(2))
    still.play()
    shaken.play(offline(shaken, 2, 0.5, 1.5))
    assert shaken.told(PeerLost, 0) and not shaken.missing
    assert torch.allclose(shaken.params[0], still.params[0], atol=1e-5)


def test_certificates_name_whom_and_how_much_was_kept():
    trial = Trial(FEDBUFF, FedBuffSettings(goal=2), build("star", 5), ())
    found = [event.certificate.contributions for _, event in trial.play(1, ()).of(RoundCommitted) if event.certificate]
    assert len(found) == 3
    keeps = {4 * Staleness()(age) for age in range(3)}
    for contributions in found:
        assert len({each.seat for each in contributions}) == len(contributions) == 2
        assert {each.weight for each in contributions} <= keeps
    assert any(each.weight < 4 for contributions in found for each in contributions)


def reached(course, settings):
    """Virtual seconds until a course has its accuracy, a fifth of the devices being ten times slower."""
    devices = DeviceSpec(examples_per_second=50.0, stragglers=0.2)
    done = Played(course, replace(settings, rounds=300, target_accuracy=0.8), build("star", 11), devices=devices).play()
    assert done.metric("accuracy")[-1] >= 0.8
    return max(seconds for seconds, _, event in done.events if isinstance(event, RoundEnded))


def test_with_stragglers_it_takes_at_most_half_as_long():
    synchronous = reached(FEDAVG, FedAvgSettings())
    assert reached(FEDBUFF, FedBuffSettings(goal=4)) <= 0.5 * synchronous
    assert reached(FEDBUFF, FedBuffSettings(goal=10, time_seconds=1.0)) <= 0.5 * synchronous


def test_clients_may_sleep():
    tables = {
        "course": {"name": "fedbuff", "rounds": 4, "goal": 3, "concurrency": 5}, "seed": 5, "topology": {"n": 2001},
        "data": {"subsample": 0.1}, "partition": {"scheme": "bootstrap"},
    }  # fmt: skip
    prepared = prepare(from_mapping(tables))
    assert prepared.sleepers
    done = simulate(prepared)
    assert [each.participants for each in done.rounds] == [3] * 4
    assert simulate(prepare(from_mapping(tables))).trace == done.trace


@pytest.mark.parametrize(
    "wrong",
    [
        {"goal": 0}, {"concurrency": -1}, {"time_seconds": -1.0}, {"server_lr": 0.0}, {"discount": "linear"},
        {"broadcast": "never"}, {"staleness_tolerance": -1}, {"discount_a": -1.0}, {"quorum": 0.5}, {"fraction": 0.5},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^course.{name} is"):
        FedBuffSettings(**wrong)


def test_mixing_is_a_share():
    with pytest.raises(ConfigError, match=r"^course.mixing is 1.5"):
        FedAsyncSettings(mixing=1.5)
    assert isinstance(FedAsyncSettings(), AsyncSettings)
