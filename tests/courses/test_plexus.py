import pytest
import torch

from p2pfl.courses.learner import seed_of
from p2pfl.courses.plexus import PLEXUS, PlexusSettings
from p2pfl.courses.view import sampled
from p2pfl.errors import ConfigError
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played, fit
from tests.courses.test_sampling import killed, samples


def plexus(n=6, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = PlexusSettings(**{"rounds": 6, "sample": 3, "evaluators": 0} | more)
    return Played(PLEXUS, settings, build("full", n), recast=recast, **own)


def by_hand(played, seats):
    """The mean of what the sample of each round makes of the last mean."""
    x = played.model.initial
    for number in range(played.settings.rounds):
        sample = sorted(sampled(seats, number)[: played.settings.sample])
        trained = [
            fit(
                x, played.model, played.shards[seat], played.train, seed_of(played.seed, "fit", number, seat), number
            ).params
            for seat in sample
        ]
        x = torch.stack(trained).double().mean(0).float()
    return x


def test_each_round_is_the_mean_of_its_sample_and_nobody_else_works():
    played = plexus().play()
    for params in played.params:
        torch.testing.assert_close(params, by_hand(played, range(6)), rtol=0, atol=1e-5)
    assert len({params.numpy().tobytes() for params in played.params}) == 1
    assert samples(played) == [set(sampled(range(6), number)[:3]) for number in range(6)]
    leaders = [seat for _, seat, event in played.events if isinstance(event, RoundEnded)]
    assert leaders == [sampled(range(6), number + 1)[0] for number in range(6)]
    assert {event.participants for event in played.told(RoundEnded)} == {3}


class Gone:
    """A node that is gone as soon as all others have seen it."""

    def __init__(self, params):
        self.params = params

    async def run(self, node):
        await node.meet([seat for seat in range(6) if seat != node.seat])


def test_others_stand_in_for_who_is_gone():
    lost = sampled(range(6), 3)[0]  # the aggregator of the third round
    played = plexus(recast=lambda seat, roles: (Gone(roles[0].params),) if seat == lost else roles).play()
    there = [seat for seat in range(6) if seat != lost]
    torch.testing.assert_close(played.params[there[0]], by_hand(played, there), rtol=0, atol=1e-5)
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == set(there)


@pytest.mark.parametrize("rest", [3, 4])
def test_when_most_die_the_course_goes_on_with_who_is_left(rest):
    """Seat 4 is of no sample at first: nobody is left who was told to do anything."""
    played = plexus(5, sample=2, devices=DeviceSpec(examples_per_second=20), patience_seconds=5.0)
    assert (rest in sampled(range(5), 0)[:2]) == (rest == 3)
    played.play(killed(played, {0, 1, 2, 3, 4} - {rest}, 0.5))
    assert [event.round for event in played.told(RoundEnded, rest)] == [1, 2, 3, 4, 5, 6]
    assert played.told(CourseEnded, rest) and samples(played)[-1] == {rest}


def test_models_that_an_aggregator_took_with_it_go_to_the_next_in_order():
    """It waits for the slow one of the sample when it dies; nobody has to wait for his patience to end."""
    slow, aggregator = sampled(range(6), 0)[0], sampled(range(6), 1)[0]
    assert aggregator not in sampled(range(6), 0)[:2]

    def recast(seat, roles):
        if seat == slow:
            roles[0]._learner.compute.examples_per_second /= 10
        return roles

    patient = {"wait_seconds": 1000.0, "patience_seconds": 1000.0}
    played = plexus(recast=recast, sample=2, devices=DeviceSpec(20), **patient)
    played.play(killed(played, [aggregator], 6.0))
    assert [(event.round, event.participants) for event in played.told(RoundEnded)][:2] == [(1, 2), (2, 2)]
    assert max(seconds for seconds, _, event in played.events if isinstance(event, RoundEnded)) < 200


def test_who_is_slow_is_waited_for_or_not():
    def slow(seat, roles):
        if seat == 1:
            roles[0]._learner.compute.examples_per_second /= 100
        return roles

    def ends(**more):
        played = plexus(recast=slow, devices=DeviceSpec(examples_per_second=100), **more).play()
        return played, [event.participants for event in played.told(RoundEnded)]

    with_it = [number for number in range(6) if 1 in sampled(range(6), number)[:3]]
    assert with_it
    patient, counts = ends(wait_seconds=1000.0, patience_seconds=1000.0)
    assert counts == [3] * 6 and not patient.missing
    hasty, counts = ends(wait_seconds=1000.0, success_fraction=0.6)
    assert counts == [2] * 6, "two of three are enough"
    timed, counts = ends(wait_seconds=3.0)
    assert all(counts[number] == (3 if number not in with_it else 2) for number in range(with_it[0] + 1))
    assert {"seat 1"} == {event.peer for event in timed.told(UpdateMissing)}
    assert {event.cause for event in hasty.told(UpdateMissing)} == {"late"}


@pytest.mark.parametrize(
    "wrong",
    [{"success_fraction": 0.0}, {"success_fraction": 1.1}, {"sample": 0}, {"rounds": 0}],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=rf"^course\.{next(iter(wrong))} is "):
        PlexusSettings(**wrong)
