"""Federated averaging whose coordinator is elected. The rules of elections are in test_council.py."""

import asyncio

import pytest
import torch

from p2pfl.council.motions import LeaderElected
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.errors import ConfigError
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played


def elected(clients=4, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = FedAvgSettings(**{"rounds": 4, "coordinator": "elect"} | more)
    return Played(FEDAVG, settings, build("star", clients + 1), **{"devices": DeviceSpec(20.0)} | own)


def fixed(**more):
    return elected(coordinator="fixed", **more).play()


def gone(played, seat, since, until=None):
    async def weather():
        await asyncio.sleep(since)
        memory, peer_id = played.world.memory, played.world.seats[seat].node.id
        memory.take_offline(peer_id)
        if until is not None:
            await asyncio.sleep(until - since)
            memory.bring_online(peer_id)

    return weather()


def killed(played, seat, since):
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(since)
        played.world.kill(seat, for_good=True)

    return weather()


def rounds(played):
    """Second, seat and round of every round that was led to its end."""
    return [(seconds, seat, event.round) for seconds, seat, event in played.events if isinstance(event, RoundEnded)]


def test_with_nobody_lost_it_is_federated_averaging():
    played = elected().play()
    assert torch.equal(played.params[0], fixed().params[0])
    assert all(torch.equal(params, played.params[0]) for params in played.params)
    assert [round for _, _, round in rounds(played)] == [1, 2, 3, 4]
    assert {event.reason for event in played.told(CourseEnded)} == {"all 4 rounds are done"}


def test_when_the_coordinator_is_lost_another_one_leads_within_ten_seconds_and_nothing_changes():
    played = elected()
    played.play(gone(played, 0, 3.0, 25.0))
    led = rounds(played)
    assert [round for _, _, round in led] == [1, 2, 3, 4]
    assert led[-1][1] == 1, "the lowest seat of those that have all rounds"
    (at,) = [
        seconds
        for seconds, seat, event in played.events
        if isinstance(event, LeaderElected) and (seat, event.seat) == (1, 1)
    ]
    assert at < 3.0 + 10
    assert torch.equal(played.params[1], fixed().params[0])
    assert not [event for event in played.told(UpdateMissing) if event.round == 4]


def test_a_coordinator_that_is_a_client_trains_as_well():
    played = elected()
    played.play(killed(played, 0, 0.5))
    assert {seat for _, seat, _ in rounds(played)} == {1}
    assert [event.participants for event in played.told(RoundEnded, 1)] == [4, 4, 4, 4]
    assert torch.equal(played.params[1], fixed().params[0])


def test_clients_evaluate_the_coordinator_among_them():
    played = elected(evaluate="both")
    played.play(killed(played, 0, 0.5))
    still = fixed(evaluate="both")
    assert played.metric("client_accuracy", 1) == still.metric("client_accuracy", 0)
    assert played.metric("accuracy", 1) == still.metric("accuracy", 0)


def test_the_minority_commits_nothing_and_catches_up():
    played = elected(rounds=8)

    async def weather():
        await asyncio.sleep(3.0)
        ids = [played.world.seats[seat].node.id for seat in range(5)]
        pairs = [(a, b) for a in ids[:2] for b in ids[2:]]
        for a, b in pairs:
            played.world.memory.partition(a, b)
            played.world.memory.cut(a, b)
        await asyncio.sleep(8.0)
        minority = {seat for seconds, seat, _ in rounds(played) if seconds > 5.0}
        assert not minority & {0, 1}
        for a, b in pairs:
            played.world.memory.heal(a, b)

    played.play(weather())
    assert [round for _, _, round in rounds(played)] == list(range(1, 9)), "no round twice"
    assert all(torch.equal(params, played.params[2]) for params in played.params)


@pytest.mark.parametrize(("field", "value"), [("keep", "best"), ("patience", 3)])
def test_what_a_successor_could_not_go_on_with_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"course.{field} is .* with course.coordinator = 'elect'"):
        FedAvgSettings(coordinator="elect", **{field: value})


def test_the_kind_of_coordinator_must_be_known():
    with pytest.raises(ConfigError, match=r"course.coordinator is 'king'; it must be one of fixed, elect"):
        FedAvgSettings(coordinator="king")
