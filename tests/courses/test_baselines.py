from dataclasses import replace

import pytest
import torch

from p2pfl.courses.baselines import LOCAL, POOLED, LocalSettings, PooledSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec
from p2pfl.node.events import RoundEnded
from tests.courses.by_hand import descend, is_close, local_of, served, small

ROUNDS = 3


def test_local_clients_learn_alone():
    played = small(LOCAL, LocalSettings(rounds=ROUNDS)).play()
    assert torch.equal(played.params[0], played.model.initial)
    for seat, shard in played.shards.items():
        assert is_close(played.params[seat], descend(played.model, played.model.initial, shard, 2 * ROUNDS))
    assert len(played.metric("client_accuracy")) == ROUNDS
    assert played.metric("client_loss")[-1] < played.metric("client_loss")[0]


def test_nothing_of_a_local_model_is_sent():
    rule = small(LOCAL, LocalSettings(rounds=1)).play().world.seats[1].roles[0]._rule
    assert rule.up.numel == rule.down.numel == 1


async def test_what_goes_up_says_nothing():
    played = small(LOCAL, LocalSettings())
    half = LOCAL.play(_place(played, 1))[0]._rule.local()
    trained = await half.train(played.learner(1), torch.zeros(1), 0)
    assert trained.vector.tolist() == [0.0]


def test_a_local_model_survives():
    played = small(LOCAL, LocalSettings(rounds=1)).play()
    other = played.world.seats[1].roles[0]._rule.local()
    assert other.state() == {}
    other.resume(local_of(played, 1).state())
    assert torch.equal(served(other, played.learner(1), played.params[0]), played.params[1])


def test_pooled_is_training_in_one_place():
    played = small(POOLED, PooledSettings(rounds=ROUNDS, evaluate="both")).play()
    expected = descend(played.model, played.model.initial, played.data.train, 2 * ROUNDS)
    for params in played.params:
        assert is_close(params, expected)
    assert [event.participants for event in played.told(RoundEnded, 0)] == [1] * ROUNDS


def test_a_million_clients_and_over_selection_are_one_too():
    rules = PooledSettings(fraction=1.0, over_selection=0.5).rules
    assert (rules.asked(1_000_000), rules.enough(1_000_000)) == (1, 1)


def _place(played, seat, **changes):
    from p2pfl.courses.course import Place

    return Place(seat, played.topology, replace(played.learner(seat), **changes), played.settings)


def test_what_cannot_be_pooled():
    played = small(POOLED, PooledSettings())
    whole = played.data.train
    with pytest.raises(ConfigError, match=r"partition.holdout is set, .* leave it out"):
        POOLED.play(_place(played, 1, validation=whole))
    with pytest.raises(ConfigError, match=r"a client alone has all the data .* take fedavg"):
        POOLED.play(_place(played, 1, shard=whole))
    shifted = small(POOLED, PooledSettings(), split=PartitionSpec(shift="scale", shift_strength=0.5))
    with pytest.raises(ConfigError, match=r"partition.shift or concepts is set, .* leave it out"):
        shifted.play()
