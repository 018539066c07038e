import asyncio
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses.gossip import CaughtUp, Lead
from p2pfl.courses.gossiplearning import GOSSIP_LEARNING, AgedModel, Forwarder, GossipLearningSettings, merged
from p2pfl.courses.learner import seed_of
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from tests.courses.kit import At, Played, fit

FULL = build("full", 5)
STILL = TrainSpec(lr=0.0)


def learning(topology=FULL, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = GossipLearningSettings(**{"rounds": 6, "evaluators": 0} | more)
    return Played(GOSSIP_LEARNING, settings, topology, recast=recast, **own)


def ended(played):
    return {seat for _, seat, event in played.events if isinstance(event, CourseEnded)}


# -- how models are merged ---------------------------------------------------------------------------------------------

X, Y = torch.tensor([0.0, 4.0]), torch.tensor([8.0, 0.0])


@pytest.mark.parametrize(
    ("age", "others", "limit", "found", "oldest"),
    [
        (1, 3, math.inf, [6.0, 1.0], 3),
        (3, 1, math.inf, [2.0, 3.0], 3),
        (0, 5, math.inf, [8.0, 0.0], 5),
        (5, 0, math.inf, [0.0, 4.0], 5),
        (0, 0, math.inf, [4.0, 2.0], 0),
        (1, 3, 2, [6.0, 1.0], 3),
        (1, 3, 1, [8.0, 0.0], 3),
        (3, 1, 1, [0.0, 4.0], 3),
        (2, 2, 0, [4.0, 2.0], 2),
        (2, 3, 0, [8.0, 0.0], 3),
    ],
)
def test_models_are_merged_by_their_ages(age, others, limit, found, oldest):
    model, years = merged(X, age, Y, others, limit)
    assert model.tolist() == found and years == oldest
    assert X.tolist() == [0.0, 4.0] and Y.tolist() == [8.0, 0.0]


@given(st.integers(0, 1 << 53), st.integers(0, 1 << 53), st.integers(0, 100) | st.just(math.inf))
def test_what_is_merged_lies_between_the_two_whoever_meets_whom(age, others, limit):
    one, years = merged(X, age, Y, others, limit)
    other, as_many = merged(Y, others, X, age, limit)
    assert years == as_many == max(age, others)
    assert torch.allclose(one, other, atol=1e-6)
    assert bool(((torch.minimum(X, Y) <= one) & (one <= torch.maximum(X, Y))).all())


# -- a course ----------------------------------------------------------------------------------------------------------


class Noted(Forwarder):
    """Notes what it does, in order."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.log = []

    def _merge(self, letter):
        super()._merge(letter)
        self.log.append(("merge", letter))

    async def _update(self, node, round, number):
        fitted = await super()._update(node, round, number)
        self.log.append(("train", round, number))
        return fitted

    async def _send(self, node, many, draw):
        sent = await super()._send(node, many, draw)
        self.log.append(("send", self._round, sent))
        return sent


def noting(seat, roles):
    (role,) = roles
    return (Noted(role._learner, role._settings, role._neighbors),)


@pytest.mark.parametrize("account", ["proactive", "randomized"])
def test_it_is_merging_and_training_one_after_the_other(account):
    """Every node's model, replayed from what it was sent: x <- train((a x + b y) / (a + b))."""
    played = learning(recast=noting, account=account).play()
    merges = 0
    for seat in range(5):
        role, x, age = played.world.seats[seat].roles[0], played.model.initial.double(), 0
        for what, *details in role.log:
            if what == "merge":
                (letter,) = details
                x = (age * x + letter.age * letter.params.double()) / (age + letter.age)
                age, merges = max(age, letter.age), merges + 1
            elif what == "train":
                seed = seed_of(0, f"fit {details[1]}", details[0], seat)
                fitted = fit(x.float(), played.model, played.shards[seat], played.train, seed, details[0])
                x, age = fitted.params.double(), age + fitted.steps
        np.testing.assert_allclose(played.params[seat], x, atol=1e-5)
        assert role.age == age
    assert merges > 10


@pytest.mark.parametrize("account", ["proactive", "simple", "generalized", "randomized"])
def test_nobody_sends_more_than_its_account_allows(account):
    played = learning(recast=noting, rounds=30, account=account, train=STILL).play()
    for seat in range(5):
        role = played.world.seats[seat].roles[0]
        sent = sum(entry[2] for entry in role.log if entry[0] == "send")
        assert sent + role.account.tokens == 30
        assert 0 <= role.account.tokens <= 4
        assert played.metric("tokens", seat)[-1] == role.account.tokens


def test_with_a_token_account_models_travel_faster_at_the_same_rate():
    """How many steps of others a model has seen, where each node may send as often."""
    ages = {}
    for account in ("proactive", "randomized"):
        played = learning(build("full", 10), rounds=40, account=account, train=STILL).play()
        ages[account] = np.mean([played.metric("age", seat)[-1] for seat in range(10)])
    assert ages["randomized"] > 1.3 * ages["proactive"]


def test_it_learns_digits():
    played = learning(
        build("full", 8), rounds=30, evaluators=-1, evaluate_every=30, seed=1, data=load_dataset(DataSpec(), 1),
        model_spec=ModelSpec("mlp", hidden=(32,)), split=PartitionSpec("dirichlet", alpha=0.5),
        train=TrainSpec(lr=0.1, batch_size=20, momentum=0.9), account="randomized",
    ).play()  # fmt: skip
    assert np.mean([played.metric("accuracy", seat)[-1] for seat in range(8)]) >= 0.85


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("account", ["proactive", "randomized"])
def test_links_that_break_lose_models_and_end_nothing(account):
    network = NetworkSpec(latency_ms=300, loss_every_seconds=10)
    played = learning(rounds=12, account=account, network=network, devices=DeviceSpec(examples_per_second=60)).play()
    assert ended(played) == set(range(5))
    assert all(bool(params.isfinite().all()) for params in played.params)
    assert sum(event.participants - 1 for event in played.told(RoundEnded)) > 5


def test_nodes_that_are_killed_come_back_and_the_others_go_on():
    played = learning(rounds=12, account="randomized")
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(8)
        played.world.kill(1)
        played.world.kill(2, for_good=True)
        await asyncio.sleep(30)
        await played.world.restart(1)

    played.play(weather())
    assert ended(played) == {0, 1, 3, 4}
    assert [event.behind for event in played.told(CaughtUp, 1)] == [1], "it has no state, and takes a neighbour's model"
    assert played.metric("age", 1)[-1] > 0


def test_training_that_takes_longer_than_a_period_makes_rounds_longer():
    played = learning(rounds=3, period_seconds=1.0, devices=DeviceSpec(examples_per_second=1.0)).play()
    assert ended(played) == set(range(5))
    firsts = {seat: at for at, seat, event in played.events if isinstance(event, RoundEnded) and event.round == 1}
    assert all(len(played.shards[seat]) <= firsts[seat] < 1.5 * len(played.shards[seat]) for seat in range(5))


# -- what comes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def forwarder():
    played = learning()
    return Forwarder(played.learner(0), played.settings, (1, 2, 3))


def sent(forwarder, round=0, age=1, params=None):
    params = forwarder.params if params is None else params
    return AgedModel(round, forwarder._learner.tensors(params), age)


def test_of_what_one_neighbour_sends_the_last_counts(forwarder):
    for peer, age in ((At(1), 3), (At(2), 4), (At(1), 5)):
        forwarder.model(sent(forwarder, age=age), peer)
        assert peer.stirred == 1
    assert {seat: letter.age for seat, letter in forwarder._mail.items()} == {1: 5, 2: 4}


def test_what_is_not_finite_is_left_out_and_told(forwarder):
    peer = At(1)
    forwarder.model(sent(forwarder, params=torch.full_like(forwarder.params, math.nan)), peer)
    assert not forwarder._mail and not peer.stirred
    assert [(type(event), event.peer, event.cause) for event in peer.told] == [(UpdateMissing, "seat 1", "unusable")]


def test_strangers_rounds_that_are_none_and_impossible_ages_are_refused(forwarder):
    with pytest.raises(RemoteProtocolError, match="has no say here"):
        forwarder.model(sent(forwarder), At(4))
    with pytest.raises(RemoteProtocolError, match="of 6"):
        forwarder.model(sent(forwarder, round=6), At(1))
    for age in (-1, (1 << 53) + 1):
        with pytest.raises(ValueError, match=r"^age is "):
            sent(forwarder, age=age)


def test_what_it_is_survives_a_restart(forwarder):
    forwarder.model(sent(forwarder, age=7, params=torch.ones_like(forwarder.params)), At(3))
    forwarder.age, forwarder.account.tokens, forwarder._round = 9, 2, 4
    again = Forwarder(forwarder._learner, forwarder._settings, (1, 2, 3))
    again.resume(forwarder.state())
    assert (again.age, again.account.tokens, again._round) == (9, 2, 4)
    (letter,) = again._mail.values()
    assert letter.age == 7 and letter.params.tolist() == torch.ones_like(letter.params).tolist()


def test_who_comes_late_takes_the_model_of_a_neighbour_only_if_it_has_none(forwarder):
    lead = Lead(5, torch.ones_like(forwarder.params))
    forwarder.age = 3
    forwarder._follow(lead)
    assert forwarder._round == 5 and not torch.equal(forwarder.params, lead.params)
    forwarder.age = 0
    forwarder._follow(lead)
    assert torch.equal(forwarder.params, lead.params)


@pytest.mark.parametrize(
    ("field", "value"),
    [("period_seconds", 0.0), ("account", "lavish"), ("capacity", 0), ("reactivity", 5), ("reactivity", 0),
     ("merge_limit", -2), ("rounds", 0)],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
        GossipLearningSettings(**{field: value})
