"""What courses with samples share, played as Plexus and as Teleportation."""

import asyncio

import pytest
import torch

from p2pfl.courses.plexus import PLEXUS, Participant
from p2pfl.courses.sampling import SamplingSettings
from p2pfl.courses.teleportation import TELEPORTATION
from p2pfl.courses.view import sampled
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.node.events import CourseEnded, RoundEnded, RoundStarted
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played


def course_of(course, n=6, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = course.settings(**{"rounds": 6, "sample": 3, "evaluators": 0} | more)
    return Played(course, settings, build("full", n), recast=recast, **own)


def samples(played):
    """Who has trained, by round."""
    found = {}
    for _, seat, event in played.events:
        if isinstance(event, RoundStarted):
            found.setdefault(event.round - 1, set()).add(seat)
    return [found[round] for round in sorted(found)]


def killed(played, seats, since):
    """These nodes die for good so many seconds after the beginning."""
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(since)
        for seat in seats:
            if played.world.alive(seat):
                played.world.kill(seat, for_good=True)

    return weather()


@pytest.mark.parametrize("since", [0.5, 2.0, 3.5])
@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("course", [PLEXUS, TELEPORTATION], ids=lambda course: course.name)
def test_whoever_dies_in_whatever_round_the_others_come_to_the_end(course, which, since):
    played = course_of(course, devices=DeviceSpec(examples_per_second=20), patience_seconds=5.0, wait_seconds=5.0)
    played.play(killed(played, [which], since))
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == {*range(6)} - {which}
    assert 6 in [event.round for event in played.told(RoundEnded)]
    assert len({params.numpy().tobytes() for seat, params in enumerate(played.params) if seat != which}) == 1


class Away(Participant):
    """Is told to train, and does nothing: then nobody has anything to do."""

    async def _train(self, node, round, params, position):
        if round:
            await super()._train(node, round, params, position)
        else:
            self._hold(1, params + 1)  # it has trained, and its model reached nobody


def test_where_nobody_has_anything_to_do_those_who_are_due_go_on_with_the_furthest_model():
    def recast(seat, roles):
        (role,) = roles
        return (Away(role._learner, role._settings, role._neighbors),)

    played = course_of(PLEXUS, recast=recast, wait_seconds=3.0, patience_seconds=9.0).play()
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == set(range(6))
    assert samples(played)[0] <= set(sampled(range(6), 1)[:3]), "of the round that the furthest model begins"
    assert [event.round for event in played.told(RoundEnded)] == [2, 3, 4, 5, 6]


class Leaving(Participant):
    async def _train(self, node, round, params, position):
        await self.leave(node)
        await super()._train(node, round, params, position)


def test_who_leaves_does_what_is_under_way_and_is_in_no_later_sample():
    first = sampled(range(6), 0)[0]

    def recast(seat, roles):
        (role,) = roles
        return (Leaving(role._learner, role._settings, role._neighbors),) if seat == first else roles

    played = course_of(PLEXUS, recast=recast, rounds=8).play()
    trained = samples(played)
    assert first in trained[0] and not any(first in sample for sample in trained[1:])
    assert [len(sample) for sample in trained] == [3] * 8
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == set(range(6))


def test_what_is_not_finite_is_left_out_and_told():
    told, played = [], course_of(PLEXUS)
    role = Participant(played.learner(0), played.settings, (1, 2, 3, 4, 5))
    node = type("Node", (), {"emit": staticmethod(told.append), "at": staticmethod(lambda seat: None)})
    models = {1: (torch.full((3,), torch.nan), 1.0), 2: (torch.ones(3), 2.0), 3: (torch.full((3,), 4.0), None)}
    assert role._mean(node, 0, models).tolist() == [2.5] * 3
    assert {(event.peer, event.cause) for event in told} >= {("seat 1", "unusable")}
    assert role._mean(node, 0, {1: (torch.full((3,), torch.nan), 1.0)}) is role.params


async def test_rounds_that_are_none_and_strangers_are_refused():
    played = course_of(PLEXUS)
    role = Participant(played.learner(0), played.settings, (1, 2, 3, 4, 5))
    for round, seat in ((6, 1), (-1, 1), (0, 0), (0, None), (0, 9)):
        with pytest.raises(RemoteProtocolError, match=r"of 6|has no say here"):
            role._check(round, type("Peer", (), {"seat": seat, "label": "somebody"}))


@pytest.mark.parametrize(
    "wrong", [{"sample": 0}, {"within": -1}, {"wait_seconds": 0.0}, {"patience_seconds": 0.0}, {"rounds": 0}]
)
def test_settings_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=rf"^course\.{next(iter(wrong))} is "):
        SamplingSettings(**wrong)


def test_everybody_must_be_linked_to_everybody():
    assert "every two nodes must be linked" in TELEPORTATION.needs(build("ring", 5))
    assert TELEPORTATION.needs(build("full", 5)) is None
