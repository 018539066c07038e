import numpy as np
import pytest
import torch

from p2pfl.courses.learner import seed_of
from p2pfl.courses.teleportation import TELEPORTATION, Carrier, TeleportationSettings, circle
from p2pfl.courses.view import sampled
from p2pfl.errors import ConfigError
from p2pfl.node.events import CourseEnded, RoundEnded
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played, fit
from tests.courses.test_sampling import killed, samples


def teleported(n=9, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = TeleportationSettings(**{"rounds": 6, "sample": 5, "evaluators": 0} | more)
    return Played(TELEPORTATION, settings, build("full", n), recast=recast, **own)


def matrix(size, degree):
    """W of a circle: the plain mean of a position and its neighbours."""
    w = np.zeros((size, size))
    for position in range(size):
        for step in range(-(degree // 2), degree // 2 + 1):
            w[position, (position + step) % size] = 1
    return w / w.sum(1, keepdims=True)


@pytest.mark.parametrize("degree", [2, 4])
def test_it_is_gossip_of_a_few_models_that_are_at_other_nodes_in_each_round(degree):
    played = teleported(degree=degree).play()
    x = np.tile(played.model.initial.numpy(), (5, 1)).astype(np.float64)
    for number in range(6):
        seats = sampled(range(9), number)[:5]
        x = np.stack([
            fit(
                torch.from_numpy(row).float(), played.model, played.shards[seat], played.train,
                seed_of(played.seed, "fit", number, seat), number,
            ).params.numpy()
            for row, seat in zip(x, seats, strict=True)
        ])  # fmt: skip
        x = matrix(5, degree) @ x if number < 5 else x.mean(0)
    for params in played.params:
        np.testing.assert_allclose(params.numpy(), x, atol=2e-5)
    assert samples(played) == [set(sampled(range(9), number)[:5]) for number in range(6)]
    assert [event.round for event in played.told(RoundEnded)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("size", "degree"), [(1, 2), (2, 2), (3, 2), (5, 2), (6, 4), (4, 6)])
def test_the_mean_of_the_models_is_kept(size, degree):
    w = np.zeros((size, size))
    for position in range(size):
        targets = circle(position, size, degree)
        w[targets, position] = 1
        assert position in targets and len(targets) == min(degree + 1, size)
    assert (w == w.T).all() and len(set(w.sum(0))) == 1


def test_a_model_that_is_lost_is_made_again_of_its_neighbours():
    """One node of the second sample dies as it trains: that round has one model less, and the next has all."""
    lost = next(seat for seat in sampled(range(9), 1)[:5] if seat not in sampled(range(9), 0)[:5])
    played = teleported(devices=DeviceSpec(examples_per_second=20), wait_seconds=5.0)
    played.play(killed(played, [lost], 1.6))
    there = [seat for seat in range(9) if seat != lost]
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == set(there)
    assert [len(sample) for sample in samples(played)] == [5] * 6
    assert samples(played)[2:] == [set(sampled(there, number)[:5]) for number in range(2, 6)]
    assert played.told(RoundEnded)[-1].participants == 5


class Alone(Carrier):
    """Is linked to nobody, as far as it knows."""

    def _order(self, node, round):
        return [self._learner.seat]


async def test_who_is_alone_goes_on_alone():
    played = teleported()
    role = Alone(played.learner(0), played.settings, tuple(range(1, 9)))
    assert role._givers(None, 2, 4) == [0] and role._size(None, 2) == 1


@pytest.mark.parametrize("degree", [0, 1, 3, -2])
def test_a_circle_has_as_many_on_both_sides(degree):
    with pytest.raises(ConfigError, match=r"^course\.degree is .*; it must be an even number"):
        TeleportationSettings(degree=degree)
