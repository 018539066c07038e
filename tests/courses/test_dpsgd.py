import asyncio
import math
import os
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import torch

from p2pfl.app.trial import Trial, settled_memory
from p2pfl.courses.course import Place
from p2pfl.courses.dpsgd import _ROUNDS_AHEAD, DPSGD, DpsgdSettings, Mixer, Model, SignedModel
from p2pfl.courses.equivocation import Pledge, Proof, Statement, model_digest
from p2pfl.courses.gossip import Standing
from p2pfl.courses.learner import seed_of
from p2pfl.courses.watch import Convict, Equivocated, Stated, Withheld
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, PeerMisbehaved, RoundEnded, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.sim.checkers import checked
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.history import Sent
from p2pfl.sim.nemesis import Crash, Partition, Rot, schedule
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.signer import SimulatedSigner
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from p2pfl.topology.weights import topology_weights
from p2pfl.wire.codec import unpack
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.courses.kit import At, Played, check_course, fit

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


def test_a_group_of_moshpit_averages_without_who_is_away():
    """Seat 1 of the grid 0 1 2 / 3 4 5 / 6 7 8 is gone: the others of its row and of its column average exactly."""

    class Gone(Leaves):
        async def run(self, node):
            await node.meet([0, 2, 4, 7])

    def recast(seat, roles):
        return (Gone(roles[0].params),) if seat == 1 else roles

    played = dpsgd(build("moshpit", 9), recast, train=STILL, rounds=2, missing="renormalise")
    x = scattered(played)
    played.play()
    columns = np.stack([x[[seat, seat + 3, seat + 6]].mean(0) for seat in (0, 2)])  # rounds go by columns first
    below = x[[4, 7]].mean(0)
    np.testing.assert_allclose(ends(played)[[0, 2]], np.tile(columns.mean(0), (2, 1)), atol=1e-6)
    np.testing.assert_allclose(ends(played)[[3, 5, 6, 8]], np.tile((columns.sum(0) + below) / 3, (4, 1)), atol=1e-6)
    assert set(played.missing) == {(1, "seat 1"), (2, "seat 1")}


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
    [("rounds", 0), ("evaluate_every", 0), ("order", "mix"), ("missing", "nobody"), ("deadline_seconds", -1.0)],
)
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
        DpsgdSettings(**{field: value})


def test_the_graph_must_be_connected():
    assert DPSGD.needs(Topology.from_edges(4, [(0, 1), (2, 3)])) == "the graph must be connected"
    assert DPSGD.needs(RING) is None


# -- signed models -----------------------------------------------------------------------------------------------------


def signed(topology, recast=lambda seat, roles: roles, **more):
    return dpsgd(topology, recast, signed=True, **more)


def sent_heads(played):
    """Let it play; tag and head of every packet, in order."""
    heads = []
    played.world.memory.watch = lambda link, packet: heads.append((unpack(packet)[2].tag, packet.head))
    played.play()
    return heads


@pytest.mark.parametrize("topology", [build("ring", 5), build("one-peer-exponential", 4), ONE_WAY], ids=repr)
@pytest.mark.parametrize("order", ["adapt", "combine"])
def test_signatures_change_nothing_of_the_result(topology, order):
    plain, ours = dpsgd(topology, order=order).play(), signed(topology, order=order).play()
    assert ours.bytes == plain.bytes
    assert not ours.told(Equivocated) and not ours.told(PeerMisbehaved) and not ours.missing


def test_without_signatures_a_model_is_as_bare_as_ever_and_nothing_else_is_sent():
    heads = sent_heads(dpsgd(RING))
    assert not {tag for tag, _ in heads} & {"SignedModel", "Stated", "Convict"}
    models = [orjson.loads(head)[3] for tag, head in heads if tag == "Model"]
    assert {tuple(fields) for fields in models} == {("round", "params")}
    assert {tag for tag, _ in sent_heads(signed(RING))} >= {"SignedModel", "Stated"}


def test_with_signatures_it_is_a_course_like_any_other():
    check_course(DPSGD, DpsgdSettings(rounds=3, signed=True), build("ring", 5))


class Faced:
    """A node that gives one neighbour something else than all others."""

    def __init__(self, node, seat, false):
        self._node, self._seat, self._false = node, seat, false

    def __getattr__(self, name):
        return getattr(self._node, name)

    async def tell_all(self, peers, message):
        for peer in peers:
            await self._node.tell_all([peer], self._false if peer.seat == self._seat else message)


class TwoFaced(Mixer):
    """From round 2 on, it gives its first neighbour another model than all others."""

    @classmethod
    def of(cls, mixer, lie):
        found = cls(mixer._learner, mixer._settings, mixer._schedule, watch=mixer._watch)
        found.params, found._lie = mixer.params, lie
        return found

    async def _hear(self, node, graph, box, ours):
        if ours.round >= 1:
            seat, params = self._learner.seat, self._learner.tensors(self._lie)
            statement = Statement.signed(node.transport.signer, "", ours.round, seat, model_digest(params["params"]))
            node = Faced(node, min(graph.neighbors(seat)), SignedModel(ours.round, params, statement.signature))
        await super()._hear(node, graph, box, ours)


def with_a_liar(topology, liar=1, lie=1e3, **more):
    def recast(seat, roles):
        mixer, watch = roles
        return (TwoFaced.of(mixer, torch.full_like(mixer.params, lie)), watch) if seat == liar else roles

    return signed(topology, recast, rounds=6, devices=DeviceSpec(examples_per_second=30), **more)


@pytest.mark.parametrize("topology", [RING, build("ring", 8), build("torus", 9), build("full", 5)], ids=repr)
def test_who_gives_two_models_in_one_round_is_banned_by_all_within_two(topology):
    played = with_a_liar(topology).play()
    honest = {seat for seat in range(topology.n) if seat != 1}
    convictions = [(seat, event) for _, seat, event in played.events if isinstance(event, Equivocated)]
    assert {seat for seat, _ in convictions} == honest and len(convictions) == len(honest)
    assert {(event.round, event.peer) for _, event in convictions} == {(2, played.world.peer_id(1))}
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} >= honest
    for seat in honest & set(topology.neighbors(1)):
        missed = {event.round for event in played.told(UpdateMissing, seat) if event.peer == "seat 1"}
        assert missed >= {4, 5, 6}, "within two rounds nothing of it counts any more"
        assert not played.world.seats[seat].node.at(1)
    for seat in honest:
        assert float(played.params[seat].abs().max()) < 10, "what it gave has entered no model"
        assert {event.peer for event in played.told(UpdateMissing, seat)} <= {"seat 1"}, "the honest go on together"


def test_what_a_liar_gave_is_left_out_if_that_is_known_in_time():
    """Its victims wait for a slow neighbour in round 1, and have its models of round 2 already: none of them counts."""

    def slow(seat, roles):
        mixer, watch = roles
        if seat == 3:
            mixer._learner.compute.examples_per_second /= 50
        if seat != 1:
            return roles
        return TwoFaced.of(mixer, torch.full_like(mixer.params, 1e6)), watch

    played = signed(RING, slow, rounds=4).play()
    for seat in (0, 2):
        reasons = [(event.round, event.reason) for event in played.told(UpdateMissing, seat)]
        assert reasons == [(number, "it has given two models in one round") for number in (1, 2, 3, 4)]
    assert all(float(played.params[seat].abs().max()) < 10 for seat in (0, 2, 3))


class Slanders:
    """Says of an honest seat that it has given two models, and shows what it has made up."""

    def __init__(self, neighbors, victim):
        self._neighbors, self._victim = neighbors, victim

    async def run(self, node):
        peers = await node.meet(self._neighbors)
        member, signer = node.members.at(self._victim), node.transport.signer
        ours = [Statement.signed(signer, "", 0, self._victim, model_digest(bytes([number]))) for number in range(2)]
        forged = [replace(statement, peer=member.id) for statement in ours]
        await node.tell_all(peers, Convict(Proof(*forged)))
        await node.tell_all(peers, Stated([forged[0]]))


def test_slander_is_held_against_who_spreads_it():
    topology = build("ring", 5)
    played = signed(topology, lambda seat, roles: (*roles, Slanders((0, 2), 3)) if seat == 1 else roles).play()
    strikes = [(seat, event.peer) for _, seat, event in played.events if isinstance(event, PeerMisbehaved)]
    assert sorted(strikes) == [(seat, played.world.peer_id(1)) for seat in (0, 0, 2, 2)]
    assert not played.told(Equivocated) and not played.missing
    assert played.bytes == signed(topology).play().bytes


class Signs(At):
    """A peer in a seat, who can sign. Nobody is linked to our node."""

    def __init__(self, seat):
        super().__init__(seat)
        self.id = f"seat{seat:07d}"
        self.stirred = 0
        self.node = SimpleNamespace(
            id="seat0000000",
            at=lambda seat: None,
            hears=lambda seat: True,
            members=SimpleNamespace(at=Signs),
            transport=SimpleNamespace(signer=SimulatedSigner("seat0000000")),
            stir=self._stir,
        )

    def _stir(self):
        self.stirred += 1

    def sign(self, message, round=None):
        round, digest = message.round if round is None else round, model_digest(message.params["params"])
        return Statement.signed(SimulatedSigner(self.id), "", round, self.seat, digest).signature


@pytest.fixture
def signing():
    played = signed(build("one-peer-exponential", 4))
    mixer, _ = played.course.play(Place(0, played.topology, played.learner(0), played.settings))
    return mixer


async def test_a_model_that_is_not_signed_or_whose_hash_is_another_is_refused(signing):
    peer, bare = Signs(3), sent(signing, 0)
    for signature in (
        "",
        peer.sign(bare, round=1),
        peer.sign(sent(signing, 0, signing.params + 1)),
        Signs(2).sign(bare),
    ):
        with pytest.raises(RemoteProtocolError, match="what seat 3 is to have stated is not signed"):
            await signing.signed_model(SignedModel(0, bare.params, signature), peer)
    assert peer.stirred == 4 and not signing._mailbox and not signing._checking
    with pytest.raises(RemoteProtocolError, match=r"not signed came, and course\.signed is true"):
        signing.model(bare, peer)
    await signing.signed_model(SignedModel(0, bare.params, peer.sign(bare)), peer)
    assert list(signing._mailbox[0]) == [3]


async def test_a_signed_model_of_another_shape_is_refused(signing):
    peer, small = Signs(3), Tensors([TensorSpec("params", "f32", (1,))], [memoryview(bytes(4))])
    with pytest.raises(RemoteProtocolError, match="was agreed"):
        await signing.signed_model(SignedModel(0, small, peer.sign(Model(0, small))), peer)


async def test_a_signed_model_is_refused_where_nobody_signs(mixer):
    bare = sent(mixer, 0)
    with pytest.raises(RemoteProtocolError, match=r"course\.signed is false"):
        await mixer.signed_model(SignedModel(0, bare.params, Signs(3).sign(bare)), Signs(3))


async def test_a_model_that_missed_the_deadline_still_tells_what_its_sender_stated(signing):
    peer, bare = Signs(3), sent(signing, 0)
    signing._round = 2
    await signing.signed_model(SignedModel(0, bare.params, peer.sign(bare)), peer)
    assert not signing._mailbox and not signing._pace.reached(3, 0)
    assert [statement.seat for statement in signing._watch._witness.known()] == [3]
    for number in (-1, 4):
        with pytest.raises(RemoteProtocolError, match="came, of 4"):
            await signing.signed_model(SignedModel(number, bare.params, ""), peer)


async def test_a_model_that_is_being_hashed_is_waited_for(signing, monkeypatch):
    gate = asyncio.Event()

    async def check(*_):
        await gate.wait()

    monkeypatch.setattr(signing._watch, "check", check)
    peer, bare = Signs(3), sent(signing, 0)
    taking = asyncio.create_task(signing.signed_model(SignedModel(0, bare.params, ""), peer))
    await asyncio.sleep(0)
    signing.standing(Standing(4), peer)
    assert signing._is_due(3, 0, audible=True)
    gate.set()
    await taking
    assert not signing._is_due(3, 0, audible=True) and list(signing._mailbox[0]) == [3]


# -- whatever goes wrong, nobody honest gives two models, and so nobody is convicted -----------------------------------

SEEDS = int(os.environ.get("P2PFL_SEEDS", "200"))


@cache
def trial():
    return Trial(DPSGD, DpsgdSettings(rounds=3, signed=True), build("ring", 6), checked("dpsgd"))


def stated_twice(history):
    """Seats that have signed two models of one round, in all their lives, and the round."""
    said = {}
    for entry, packet in history.of(Sent):
        if packet.tag == "SignedModel":
            said.setdefault((entry.seat, packet.round), set()).update(packet.hashes)
    return [key for key, models in said.items() if len(models) > 1]


LOST = (Partition(2.496, 9.338, (0, 1, 3)), Rot(2.544, 2.544, 0, 0.98), Crash(2.544, 3.772, 0))
"""Seat 0 is killed, has lost the round that it had committed last, and meets other neighbours as it plays it again."""


def test_a_restarted_node_whose_neighbours_differ_gives_no_second_model_of_a_round(monkeypatch):
    found, history = trial().violations(148, LOST)
    assert not found and not stated_twice(history) and not list(history.of(Equivocated))
    assert [(entry.seat, event.round) for entry, event in history.of(Withheld)] == [(0, 1), (0, 2)]
    monkeypatch.setattr(Pledge, "permits", lambda *_: True)
    _, history = trial().violations(148, LOST)
    assert stated_twice(history) == [(0, 1)] and list(history.of(Equivocated)), "without its pledge it is convicted"


def test_nobody_honest_is_convicted_whatever_goes_wrong():
    withheld = 0
    with settled_memory():
        for seed in range(SEEDS):
            found, history = trial().violations(seed, schedule(seed, trial().ground))
            assert not found, f"seed {seed}: {found}"
            assert not list(history.of(Equivocated)), f"seed {seed}"
            assert not stated_twice(history), f"seed {seed}"
            withheld += sum(1 for _ in history.of(Withheld))
    assert withheld, "no fault has put it to the test"


def test_who_goes_while_others_are_told_is_not_waited_for(monkeypatch):
    """To tell may take long, as on a slow link; that somebody has gone meanwhile is not told again."""
    played = dpsgd(build("ring", 4), rejoin_seconds=1.0)
    told = Node.tell_all

    async def slowly(node, peers, message):
        missed = await told(node, peers, message)
        if node.seat == 0 and isinstance(message, Model) and message.round == 1:
            played.world.memory.take_offline(played.world.peer_id(3))
            await asyncio.sleep(5)
        return missed

    monkeypatch.setattr(Node, "tell_all", slowly)
    played.play()
    assert [event.round for event in played.told(RoundEnded, 0)] == [1, 2, 3, 4]
    assert (2, "seat 3") in played.missing
