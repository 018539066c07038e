import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fednova import FEDNOVA, FedNovaSettings, Normalizing, Novel, reach
from p2pfl.courses.parts import Parts
from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset
from p2pfl.learn.model import Model
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from p2pfl.learn.train import fit
from p2pfl.topology.families import build
from tests.courses.kit import Played
from tests.courses.test_fedopt import trained

SKEWED = {"train": TrainSpec(lr=0.2, batch_size=4, epochs=2), "split": PartitionSpec("lognormal", sigma=1.2)}


@given(st.floats(0, 0.95), st.integers(1, 60))
def test_with_momentum_a_client_goes_as_far_as_the_paper_says(momentum, steps):
    expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert reach(TrainSpec(momentum=momentum), 0.1, steps) == pytest.approx(expected)


@given(st.floats(0.01, 5), st.integers(1, 60))
def test_with_a_proximal_term_a_client_goes_as_far_as_the_paper_says(proximal, steps):
    alpha = 0.1 * proximal
    assert reach(TrainSpec(proximal=proximal), 0.1, steps) == pytest.approx((1 - (1 - alpha) ** steps) / alpha)


ONES = Dataset("ones", torch.ones(2, 1), torch.ones(2), (), torch.arange(2), torch.arange(0))
SLOPE = Model.of(nn.Linear(1, 1, bias=False), lambda outputs, _: outputs.mean(), ONES.x, ONES.y)


@given(st.floats(0, 0.9), st.floats(0, 2), st.integers(1, 12))
def test_that_is_how_far_training_goes_by_a_constant_gradient(momentum, proximal, steps):
    spec = TrainSpec(lr=0.1, steps=steps, momentum=momentum, proximal=proximal)
    found = fit(torch.tensor([3.0]), SLOPE, ONES.train, spec, 0)
    assert (3.0 - found.params.item()) / 0.1 == pytest.approx(reach(spec, 0.1, steps), rel=1e-3, abs=1e-4)


def reference(played, rounds):
    """Equations 3 and 4 of the paper, in float64."""
    params = played.model.initial.double()
    total = sum(len(shard) for shard in played.shards.values())
    for round in range(rounds):
        before, direction, tau_eff = params, 0.0, 0.0
        for found in trained(played, params.float(), round):
            p, a = found.num_examples / total, reach(played.train, played.train.lr, found.steps)
            direction = direction + p * (before - found.params.double()) / a
            tau_eff = tau_eff + p * a
        params = before - tau_eff * direction
    return params.float()


@pytest.mark.parametrize("more", [{}, {"momentum": 0.5}, {"proximal": 0.5}, {"momentum": 0.5, "proximal": 0.5}])
def test_a_course_is_normalized_averaging(more):
    played = Played(FEDNOVA, FedNovaSettings(rounds=3, evaluate="none"), build("star", 4), **SKEWED)
    played.train = TrainSpec(lr=0.2, batch_size=4, epochs=2, **more)
    played.play()
    steps = {found.steps for found in trained(played, played.model.initial, 0)}
    assert len(steps) > 1, "clients differ"
    for held in played.params:
        torch.testing.assert_close(held, reference(played, 3), rtol=1e-4, atol=1e-5)


def test_who_takes_as_many_steps_is_averaged_as_ever():
    equal = {"train": TrainSpec(lr=0.2, steps=5, batch_size=4)}
    plain = Played(FEDAVG, FedAvgSettings(rounds=3, evaluate="none"), build("star", 4), **equal).play()
    played = Played(FEDNOVA, FedNovaSettings(rounds=3, evaluate="none"), build("star", 4), **equal).play()
    torch.testing.assert_close(played.params[0], plain.params[0], rtol=1e-4, atol=1e-5)


def test_who_takes_more_steps_counts_for_more_only_without_it():
    plain = Played(FEDAVG, FedAvgSettings(rounds=3, evaluate="none"), build("star", 4), **SKEWED).play()
    played = Played(FEDNOVA, FedNovaSettings(rounds=3, evaluate="none"), build("star", 4), **SKEWED).play()
    assert (played.params[0] - plain.params[0]).abs().max() > 1e-2


async def test_what_no_gradient_moves_is_averaged():
    """As if only the first two numbers had gradients."""
    played = Played(FEDNOVA, FedNovaSettings(), build("star", 3), train=TrainSpec(lr=0.2, steps=4))
    start, up = played.model.initial, Parts(played.model, reach=1)
    update = (await Normalizing(up, 2).train(played.learner(1), start, 0)).vector
    after = Novel(up, 2).absorb(start, update, 1.0, 0)
    (found, _) = trained(played, start, 0)
    torch.testing.assert_close(after, found.params)
    torch.testing.assert_close(update[:2] * 4, update[:2] * update[-1])
    torch.testing.assert_close(update[2:-1], (found.params - start)[2:])


def test_an_optimizer_whose_steps_cannot_be_counted_is_refused():
    with pytest.raises(ConfigError, match=r"train\.optimizer is 'Adam'.* set it to 'sgd'"):
        Played(FEDNOVA, FedNovaSettings(), build("star", 4), train=TrainSpec(optimizer="Adam")).play()
