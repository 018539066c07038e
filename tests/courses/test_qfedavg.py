import math

import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.parts import Parts
from p2pfl.courses.qfedavg import QFEDAVG, FairDescent, QFedAvgSettings, Reweighing
from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.model import Model
from p2pfl.learn.specs import TrainSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played, dataset
from tests.courses.test_fedopt import trained


def reference(played, rounds, q):
    """Algorithm 2 in float64, with p_k n_k / n in the sums."""
    params, lipschitz = played.model.initial.double().numpy(), 1 / played.train.lr
    for round in range(rounds):
        sent = torch.from_numpy(params).float()
        deltas, hs = 0.0, 0.0
        for shard, found in zip(played.shards.values(), trained(played, sent, round), strict=True):
            loss = evaluate(sent, played.model, shard).loss
            moved = lipschitz * (params - found.params.double().numpy())
            deltas = deltas + len(shard) * loss**q * moved
            hs = hs + len(shard) * (q * loss ** (q - 1) * np.sum(moved**2) + lipschitz * loss**q)
        params = params - deltas / hs
    return torch.from_numpy(params).float()


@pytest.mark.parametrize("q", [0.5, 1.0, 5.0])
def test_a_course_is_algorithm_2(q):
    played = Played(QFEDAVG, QFedAvgSettings(rounds=3, q=q, evaluate="none"), build("star", 4)).play()
    expected = reference(played, 3, q)
    for held in played.params:
        torch.testing.assert_close(held, expected, rtol=1e-4, atol=1e-5)


def test_without_fairness_it_is_federated_averaging():
    plain = Played(FEDAVG, FedAvgSettings(rounds=3, evaluate="none"), build("star", 4)).play()
    played = Played(QFEDAVG, QFedAvgSettings(rounds=3, q=0.0, evaluate="none"), build("star", 4)).play()
    torch.testing.assert_close(played.params[0], plain.params[0], rtol=1e-4, atol=1e-5)


async def test_who_has_the_larger_loss_counts_for_more():
    """Two clients whose d is as long: the ratio of what they send is that of their losses, to the power of q."""
    played = Played(QFEDAVG, QFedAvgSettings(), build("star", 3))
    up, trainable = Parts(played.model, h=1), played.model.layout.numel
    received = played.model.initial
    sent = {}
    for q in (0.0, 2.0):
        found = await Reweighing(up, trainable, q).train(played.learner(1), received, 0)
        sent[q] = up.split(found.vector)
    loss = evaluate(received, played.model, played.shards[1]).loss
    torch.testing.assert_close(sent[2.0]["params"], sent[0.0]["params"] * loss**2)
    norm = float(sent[0.0]["params"].double().square().sum())
    assert sent[0.0]["h"].item() == pytest.approx(1 / played.train.lr)
    assert sent[2.0]["h"].item() == pytest.approx(2 * loss * norm + loss**2 / played.train.lr)


@pytest.mark.parametrize("value", [-1.0, math.nan])
async def test_a_loss_that_has_no_power_is_no_update(value):
    data = dataset()
    x, y = data.batch(data.train_indices[:4])
    model = Model.of(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), lambda outputs, _: outputs.mean() * 0 + value, x, y
    )
    played = Played(QFEDAVG, QFedAvgSettings(), build("star", 3))
    played.model = model
    half = Reweighing(Parts(model, h=1), model.layout.numel, 1.0)
    with pytest.raises(ComputeError, match=r"the loss is .*; qfedavg needs one that is a number and not negative"):
        await half.train(played.learner(1), model.initial, 0)


def test_where_nobody_has_a_loss_the_model_stays():
    played = Played(QFEDAVG, QFedAvgSettings(), build("star", 3))
    up, params = Parts(played.model, h=1), played.model.initial
    server = FairDescent(up, played.model.layout.numel)
    assert torch.equal(server.absorb(params, torch.zeros(up.numel), 1.0, 0), params)


def test_what_no_gradient_moves_is_averaged():
    up = Parts(Played(QFEDAVG, QFedAvgSettings(), build("star", 3)).model, h=1)
    server = FairDescent(up, 2)
    params, update = torch.ones(up.numel - 1), torch.full((up.numel - 1,), 4.0)
    found = server.absorb(params, torch.cat((update, torch.tensor([8.0]))), 1.0, 0)
    assert found[:3].tolist() == [1.5, 1.5, 5.0]


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"course\.q is -1\.0; it must not be negative"):
        QFedAvgSettings(q=-1.0)
    for train in (TrainSpec(lr=0.0), TrainSpec(schedule="cosine", schedule_rounds=3, schedule_factor=0.0)):
        with pytest.raises(ConfigError, match=r"train\.lr is 0 or falls to it"):
            Played(QFEDAVG, QFedAvgSettings(), build("star", 3), train=train).play()
