import asyncio
import math

import numpy as np
import pytest
import torch

from p2pfl.courses.dpsgd import _ROUNDS_AHEAD, DPSGD, DpsgdSettings, Mixer, Model
from p2pfl.courses.learner import seed_of
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from p2pfl.topology.weights import topology_weights
from tests.courses.kit import Played, fit

STILL = TrainSpec(lr=0.0)


def dpsgd(topology, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(DPSGD, DpsgdSettings(**{"rounds": 4, "evaluators": 0} | more), topology, recast=recast, **own)


def scattered(played):
    """Give each seat a vector of its own to begin with; the vectors as rows."""
    x = torch.randn(played.topology.n, played.model.layout.numel, generator=torch.Generator().manual_seed(5))
    before = played.recast

    def recast(seat, roles):
        roles = before(seat, roles)
        roles[0].params = x[seat].clone()
        return roles

    played.recast = recast
    return x.double().numpy()


def matrix(topology):
    """W with w[i, j], the weight that i gives to what j sent."""
    w = np.zeros((topology.n, topology.n))
    for seat in range(topology.n):
        for other, weight in topology_weights(topology, seat).items():
            w[seat, other] = weight
        w[seat, seat] = 1 - w[seat].sum()
    return w


def ends(played):
    return torch.stack(played.params).double().numpy()


# -- consensus ---------------------------------------------------------------------------------------------------------

ONE_WAY = build("exponential", 8)
GRAPHS = [build("ring", 6), build("torus", 9), build("star", 5), build("one-peer-exponential", 8), ONE_WAY]


@pytest.mark.parametrize("topology", GRAPHS, ids=lambda topology: topology.family)
@pytest.mark.parametrize("order", ["adapt", "combine"])
def test_without_learning_it_is_multiplication_by_the_mixing_matrix(topology, order):
    played = dpsgd(topology, train=STILL, order=order)
    x = scattered(played)
    played.play()
    wanted = x
    for number in range(4):
        wanted = matrix(topology.at(number)) @ wanted
    np.testing.assert_allclose(ends(played), wanted, atol=1e-6)
    np.testing.assert_allclose(ends(played).mean(0), x.mean(0), atol=1e-6)  # of all of these graphs, for once


def test_one_peer_exponential_averages_exactly_in_log2_n_rounds():
    played = dpsgd(build("one-peer-exponential", 8), train=STILL, rounds=3)
    x = scattered(played)
    played.play()
    np.testing.assert_allclose(ends(played), np.tile(x.mean(0), (8, 1)), atol=1e-6)


def test_the_network_does_not_change_the_result():
    wild = NetworkSpec(latency_ms=50, latency_spread=2.0, jitter=3.0, uplink_mbps=0.5)
    for topology in (build("ring", 5), build("one-peer-exponential", 4)):
        assert dpsgd(topology).play().bytes == dpsgd(topology, network=wild).play().bytes


# -- learning ----------------------------------------------------------------------------------------------------------


def by_hand(played):
    """Both orders of Lian et al., in numpy but for the gradients."""
    n, x = played.topology.n, np.tile(played.model.initial.numpy(), (played.topology.n, 1))
    for number in range(played.settings.rounds):
        w = matrix(played.topology.at(number)).astype(np.float32)
        y = np.stack([
            fit(
                torch.from_numpy(x[i]), played.model, played.shards[i], played.train,
                seed_of(played.seed, "fit", number, i), number,
            ).params.numpy()
            for i in range(n)
        ])  # fmt: skip
        x = w @ y if played.settings.order == "adapt" else w @ x + (y - x)
    return x


@pytest.mark.parametrize("order", ["adapt", "combine"])
@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4), ONE_WAY], ids=repr)
def test_it_is_the_algorithm_that_the_paper_has(topology, order):
    played = dpsgd(topology, rounds=3, order=order).play()
    np.testing.assert_allclose(ends(played), by_hand(played), atol=2e-5)


def test_it_learns_digits_on_a_ring():
    played = dpsgd(
        build("ring", 8),
        rounds=40,
        evaluators=-1,
        evaluate_every=40,
        seed=1,
        data=load_dataset(DataSpec(), 1),
        model_spec=ModelSpec("mlp", hidden=(32,)),
        split=PartitionSpec("dirichlet", alpha=0.3),
        train=TrainSpec(lr=0.2, batch_size=20, epochs=2, momentum=0.9),
    ).play()
    accuracies = [played.metric("accuracy", seat)[-1] for seat in range(8)]
    assert np.mean(accuracies) >= 0.9


# -- what does not arrive ----------------------------------------------------------------------------------------------


class Leaves:
    """A node that is gone as soon as its neighbours 0 and 2 have seen it."""

    def __init__(self, params):
        self.params = params

    async def run(self, node):
        await node.meet([0, 2])


class Sends:
    """A neighbour that sends what the test wants, in every round."""

    def __init__(self, mixer, vector):
        self.params, self._learner, self._rounds = mixer.params, mixer._learner, mixer._settings.rounds
        self._vector = vector

    async def run(self, node):
        peers = await node.meet([0, 2])
        for number in range(self._rounds):
            await node.tell_all(peers, Model(number, self._learner.tensors(self._vector)))
        await asyncio.sleep(30)

    @Model.handler
    async def model(self, message: Model, peer) -> None:
        pass


RING = build("ring", 4)  # 0 1 2 3, and 0


def test_the_weight_of_a_missing_neighbour_stays_with_the_receiver():
    played = dpsgd(RING, lambda seat, roles: (Leaves(roles[0].params),) if seat == 1 else roles, train=STILL)
    x = scattered(played)
    played.play()
    w = matrix(RING)
    for seat in (0, 2):
        w[seat, seat] += w[seat, 1]
        w[seat, 1] = 0
    w[1] = np.eye(4)[1]
    np.testing.assert_allclose(ends(played), np.linalg.matrix_power(w, 4) @ x, atol=1e-6)
    assert set(played.missing) == {(number, "seat 1") for number in range(1, 5)}
    assert {event.participants for event in played.told(RoundEnded, 0)} == {2}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", ["adapt", "combine"])
def test_a_model_that_is_not_finite_is_left_out(value, order):
    def recast(seat, roles):
        vector = torch.zeros_like(roles[0].params)
        vector[-1] = value
        return (Sends(roles[0], vector),) if seat == 1 else roles

    played = dpsgd(RING, recast, train=STILL, order=order, rounds=2).play()
    for seat in (0, 2, 3):
        assert torch.allclose(played.params[seat], played.model.initial)
    reasons = {event.reason for event in played.told(UpdateMissing)}
    assert reasons == {"its model has NaN or infinite numbers"}
    assert {(event.round, event.peer) for event in played.told(UpdateMissing, 0)} == {(1, "seat 1"), (2, "seat 1")}


def test_a_model_of_our_own_that_has_diverged_is_nobody_elses_fault():
    played = dpsgd(RING, rounds=1, train=STILL)
    mixer = Mixer(played.learner(0), played.settings, RING)
    ours = torch.full_like(played.model.initial, math.nan)
    sound = {1: torch.zeros_like(ours), 3: torch.ones_like(ours)}
    events = []

    class Told:
        def emit(self, event):
            events.append(event)

    assert mixer._mix(Told(), 0, ours, sound).isnan().all()
    assert not events
    both = {1: sound[1], 3: torch.full_like(ours, math.inf)}
    assert torch.allclose(mixer._mix(Told(), 0, torch.ones_like(ours), both), torch.tensor(2 / 3))
    assert [event.peer for event in events] == ["seat 3"]


def test_the_finite_check_looks_once_at_the_sum(monkeypatch):
    looks = []
    monkeypatch.setattr("p2pfl.courses.dpsgd.is_finite", lambda vector: looks.append(1) or True)
    dpsgd(build("full", 5), rounds=3).play()
    assert len(looks) == 5 * 3


def test_a_deadline_ends_the_round_with_what_has_arrived():
    def slow(seat, roles):
        if seat == 1:
            roles[0]._learner.compute.examples_per_second /= 1e5
        return roles

    played = dpsgd(RING, slow, deadline_seconds=5.0).play()
    assert {(event.round, event.peer) for event in played.told(UpdateMissing, 0)} == {
        (n, "seat 1") for n in range(1, 5)
    }
    assert len(played.told(CourseEnded)) == 4
    for seat in (0, 2, 3):
        (mixer,) = played.world.seats[seat].roles
        assert not mixer._mailbox, "models that came too late are kept"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("topology", [RING, ONE_WAY], ids=repr)
def test_links_that_break_while_nobody_looks_stall_nobody(topology, seed):
    """What was lost with a link is said again over the next: else two nodes would wait for each other for ever."""
    network = NetworkSpec(latency_ms=500, loss_every_seconds=3.0)
    devices = DeviceSpec(examples_per_second=30, spread=0.5)
    played = dpsgd(topology, rounds=20, seed=seed, network=network, devices=devices).play()
    assert len(played.told(CourseEnded)) == topology.n
    assert all(len(played.told(RoundEnded, seat)) >= 10 for seat in range(topology.n)), "some are given the end"


# -- the mailbox -------------------------------------------------------------------------------------------------------


class At:
    """A peer in a seat."""

    def __init__(self, seat):
        self.seat, self.label = seat, f"seat {seat}"


@pytest.fixture
def mixer():
    played = dpsgd(build("one-peer-exponential", 4))  # in round 0, seat 0 hears seat 3; in round 1, seat 2
    return Mixer(played.learner(0), played.settings, played.topology)


def sent(mixer, number, vector=None):
    return Model(number, mixer._learner.tensors(mixer.params if vector is None else vector))


async def test_models_of_later_rounds_are_kept(mixer):
    mixer.model(sent(mixer, 0), At(3))
    mixer.model(sent(mixer, 1), At(2))
    assert {number: list(box) for number, box in mixer._mailbox.items()} == {0: [3], 1: [2]}


async def test_only_senders_of_the_round_are_heard(mixer):
    for number, seat in ((0, 2), (1, 3), (0, 1), (0, None), (0, 17)):
        with pytest.raises(RemoteProtocolError, match="has no say here"):
            mixer.model(sent(mixer, number), At(seat))
    assert not mixer._mailbox


async def test_models_of_the_far_future_are_not_kept_and_say_where_their_senders_are():
    played = dpsgd(build("one-peer-exponential", 4), rounds=200)
    mixer = Mixer(played.learner(0), played.settings, played.topology)
    mixer.model(sent(mixer, _ROUNDS_AHEAD), At(3))
    assert not mixer._mailbox and mixer._pace.reached(3, _ROUNDS_AHEAD)


async def test_models_of_the_past_are_dropped_and_those_of_rounds_that_are_none_refused(mixer):
    mixer.model(sent(mixer, -1), At(3))
    assert not mixer._mailbox
    with pytest.raises(RemoteProtocolError, match="a model of round 5 came, of 4"):
        mixer.model(sent(mixer, 4), At(3))


async def test_a_model_of_another_shape_is_refused(mixer):
    small = Model(0, mixer._learner.tensors(mixer.params))
    other = type(mixer)(dpsgd(RING, model_spec=ModelSpec("mlp")).learner(0), mixer._settings, mixer._schedule)
    with pytest.raises(RemoteProtocolError, match="was agreed"):
        await other.model(small, At(3))


@pytest.mark.parametrize(
    ("field", "value"),
    [("rounds", 0), ("evaluate_every", 0), ("order", "mix"), ("deadline_seconds", -1.0)],
)
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
        DpsgdSettings(**{field: value})


def test_the_graph_must_be_connected():
    assert DPSGD.needs(Topology.from_edges(4, [(0, 1), (2, 3)])) == "the graph must be connected"
    assert DPSGD.needs(RING) is None
