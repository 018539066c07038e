import asyncio
import math

import numpy as np
import pytest
import torch

from p2pfl.courses.dpsgd import Model
from p2pfl.courses.staleness import Staleness
from p2pfl.courses.swift import SWIFT, Poster, SwiftSettings
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import At, Played, local_training

RING = build("ring", 5)
STILL = TrainSpec(lr=0.0)
UNEVEN = DeviceSpec(examples_per_second=100, spread=1.0)


def swift(topology=RING, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = SwiftSettings(**{"rounds": 6, "evaluators": 0} | more)
    return Played(SWIFT, settings, topology, recast=recast, **own)


def ended(played):
    return {seat for _, seat, event in played.events if isinstance(event, CourseEnded)}


def round_ends(played, seat):
    return [at for at, number, event in played.events if number == seat and isinstance(event, RoundEnded)]


class Noted(Poster):
    """Notes what it averages with what."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.log, self.came = [], []

    def _average(self, own, round, letters):
        mean = super()._average(own, round, letters)
        self.log.append((own.clone(), letters, mean.clone()))
        return mean

    def _sender(self, message, peer):
        seat = super()._sender(message, peer)
        self.came.append((seat, message.round, self._round))
        return seat


def noting(seat, roles):
    (role,) = roles
    return (Noted(role._learner, role._settings, role._row),)


@pytest.mark.parametrize("discount", ["constant", "exponential"])
@pytest.mark.parametrize("topology", [RING, build("star", 5)], ids=repr)
def test_it_is_the_average_of_what_is_there_and_what_was_learned(topology, discount):
    played = swift(topology, noting, discount=discount, devices=UNEVEN, network=NetworkSpec(latency_ms=300)).play()
    w, keeps = np.asarray(mixing_matrix(topology, "metropolis")), Staleness(discount)
    roles = [played.world.seats[seat].roles[0] for seat in range(5)]
    x, ages = np.tile(played.model.initial.numpy(), (5, 1)), set()
    posted = [[] for _ in range(5)]
    for round in range(6):
        y = local_training(played, x, round)
        for i in range(5):
            own, mail, mean = roles[i].log[round]
            np.testing.assert_allclose(own, x[i], atol=2e-5)
            posted[i].append(x[i].copy())
            wanted = x[i].copy()
            for j, letter in mail.items():
                wanted += w[i, j] * keeps(round - letter.round) * (letter.params.numpy() - x[i])
                ages.add(round - letter.round)
            np.testing.assert_allclose(mean, wanted, atol=2e-5)
            x[i] = wanted + (y[i] - x[i])
    np.testing.assert_allclose(torch.stack(played.params), x, atol=5e-5)
    assert len(ages) > 1, "some came rounds ago"
    for i in range(5):  # the last that has come is in the mailbox
        last = {seat: number for seat, number, _ in roles[i].came}
        for j, letter in roles[i]._mail.items():
            np.testing.assert_allclose(letter.params, posted[j][last[j]], atol=2e-5)


def test_nobody_waits_for_who_is_slow_or_for_slow_links():
    def slow(seat, roles):
        if seat == 1:
            roles[0]._learner.compute.examples_per_second /= 30
        return roles

    plain = swift(rounds=8, devices=DeviceSpec(examples_per_second=100)).play()
    uneven = swift(rounds=8, recast=slow, devices=DeviceSpec(examples_per_second=100)).play()
    clogged = swift(
        rounds=8, devices=DeviceSpec(examples_per_second=100), network=NetworkSpec(uplink_mbps=0.005)
    ).play()  # fmt: skip
    others = (0, 2, 3, 4)
    took = [[np.diff(round_ends(played, seat)) for seat in others] for played in (plain, uneven, clogged)]
    np.testing.assert_allclose(took[1], took[0])
    np.testing.assert_allclose(took[2], took[0])
    assert len(round_ends(uneven, 1)) == 8, "who is slow keeps its rounds"
    heard = [sum(event.participants for event in played.told(RoundEnded)) for played in (plain, clogged)]
    assert heard[1] < heard[0]


def scattered(played):
    """Give each seat a vector of its own to begin with; the vectors as rows."""
    x = torch.randn(played.topology.n, played.model.layout.numel, generator=torch.Generator().manual_seed(5))

    def recast(seat, roles):
        roles[0].params = x[seat].clone()
        return roles

    played.recast = recast
    return x


def spread(x):
    return float((x - x.mean(0)).norm())


def test_without_learning_all_agree_within_what_they_began_with():
    played = swift(rounds=60, train=STILL, devices=UNEVEN)
    x = scattered(played)
    found = torch.stack(played.play().params)
    assert bool(((found >= x.min(0).values) & (found <= x.max(0).values)).all())
    assert spread(found) < 0.05 * spread(x)


def test_both_sides_of_a_partition_go_on_and_come_together_after_it():
    even = PartitionSpec("bootstrap", examples_per_client=24)
    played = swift(build("ring", 6), rounds=60, train=STILL, split=even, devices=DeviceSpec(examples_per_second=24))
    x, apart = scattered(played), []

    async def weather():
        pairs = [(played.world.peer_id(a), played.world.peer_id(b)) for a in (0, 1, 2) for b in (3, 4, 5)]
        for pair in pairs:
            played.world.memory.partition(*pair)
        await asyncio.sleep(30)
        apart.append(torch.stack(played.params))
        for pair in pairs:
            played.world.memory.heal(*pair)

    played.play(weather())
    assert max(spread(apart[0][:3]), spread(apart[0][3:])) < 0.1 * spread(x), "each side has agreed"
    assert spread(apart[0]) > 0.3 * spread(x)
    assert spread(torch.stack(played.params)) < 0.1 * spread(apart[0])


def test_it_learns_digits():
    played = swift(
        build("torus", 9), rounds=30, evaluators=-1, evaluate_every=30, seed=1, data=load_dataset(DataSpec(), 1),
        model_spec=ModelSpec("mlp", hidden=(32,)), split=PartitionSpec("dirichlet", alpha=0.5),
        train=TrainSpec(lr=0.1, batch_size=20, momentum=0.9),
        devices=DeviceSpec(examples_per_second=100, spread=0.3),
    ).play()  # fmt: skip
    assert np.mean([played.metric("accuracy", seat)[-1] for seat in range(9)]) >= 0.75


def test_who_is_gone_counts_no_more():
    played = swift(recast=noting, rounds=10, devices=DeviceSpec(examples_per_second=30))
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(4)
        played.world.kill(2, for_good=True)

    played.play(weather())
    for seat in (1, 3):
        heard = [2 in letters for _, letters, _ in played.world.seats[seat].roles[0].log]
        assert any(heard) and not heard[-1]
        assert 2 in played.world.seats[seat].roles[0]._mail, "it may come back"


def test_who_is_through_stays_for_who_is_slower_and_counts_no_more():
    def slow(seat, roles):
        if seat == 1:
            roles[0]._learner.compute.examples_per_second /= 3
        return noting(seat, roles)

    played = swift(recast=slow, rounds=10, devices=DeviceSpec(examples_per_second=30)).play()
    logged = [sorted(letters) for _, letters, _ in played.world.seats[1].roles[0].log]
    assert logged[0] == [0, 2] and logged[-1] == []
    ends = {seat: at for at, seat, event in played.events if isinstance(event, CourseEnded)}
    assert max(ends.values()) - ends[0] < 1 and round_ends(played, 0)[-1] < 0.5 * round_ends(played, 1)[-1]
    assert not played.missing


def test_links_that_break_and_nodes_that_go_end_nothing():
    network = NetworkSpec(latency_ms=300, loss_every_seconds=8)
    played = swift(rounds=20, devices=DeviceSpec(examples_per_second=30), network=network)
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(5)
        played.world.kill(2, for_good=True)
        played.world.kill(1)
        await asyncio.sleep(5)
        await played.world.restart(1)

    played.play(weather())
    assert ended(played) == {0, 1, 3, 4}
    assert all(bool(params.isfinite().all()) for params in played.params)


# -- what comes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def poster():
    played = swift(discount="hinge", discount_a=1.0, discount_b=1.0)
    return Poster(played.learner(0), played.settings, {1: 0.25, 4: 0.5})


def sent(poster, value, round=0):
    return Model(round, poster._learner.tensors(torch.full_like(poster.params, value)))


def test_what_is_late_leaves_its_weight_with_the_receiver(poster):
    own = torch.zeros_like(poster.params)
    assert torch.equal(poster._average(own + 3, 0, {}), own + 3), "nothing has come"
    poster._round = 2
    poster.model(sent(poster, 4.0), At(1))
    poster._round = 5
    poster.model(sent(poster, 8.0), At(4))
    for round, wanted in ((5, 0.25 * 4 / 3 + 0.5 * 8), (7, 0.25 * 4 / 5 + 0.5 * 8 / 2)):
        assert torch.allclose(poster._average(own, round, poster._mail), own + wanted)
    assert torch.allclose(poster._average(own + 4, 9, poster._mail), own + 4 + 0.5 * (8 - 4) / 4)


def test_the_mailboxes_survive_a_restart(poster):
    poster._round = 3
    for seat, value in ((4, 1.0), (1, 2.0), (4, 5.0)):
        poster.model(sent(poster, value), At(seat))
    again = Poster(poster._learner, poster._settings, {1: 0.25, 4: 0.5})
    again.resume(poster.state())
    assert again._round == 3 and {seat: letter.round for seat, letter in again._mail.items()} == {1: 3, 4: 3}
    own = torch.zeros_like(poster.params)
    assert torch.equal(again._average(own, 6, again._mail), poster._average(own, 6, poster._mail))


def test_what_cannot_be_used_is_left_out(poster):
    peer = At(1)
    poster.model(sent(poster, math.nan), peer)
    assert not poster._mail and [(type(event), event.cause) for event in peer.told] == [(UpdateMissing, "unusable")]
    with pytest.raises(RemoteProtocolError, match="has no say here"):
        poster.model(sent(poster, 0.0), At(2))


@pytest.mark.parametrize(
    ("field", "value"), [("discount", "linear"), ("discount_a", -1.0), ("discount_b", -1.0), ("rounds", 0)]
)
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
        SwiftSettings(**{field: value})


def test_links_must_go_both_ways():
    assert "both ways" in SWIFT.needs(build("exponential", 8))
    assert SWIFT.needs(RING) is None
