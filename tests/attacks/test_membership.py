"""Members of an over-fitted model are told from others, and not where there is enough noise."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from p2pfl.attacks.membership import Shadows, by_loss, confidence, lira, shadows_of
from p2pfl.attacks.scores import auc, tpr_at
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.specs import ModelSpec, TrainSpec
from p2pfl.learn.train import fit
from p2pfl.privacy.clipping import clipped

TRAIN = TrainSpec(epochs=30, batch_size=10, lr=0.5)


@cache
def toy() -> Dataset:
    """Noise with classes that depend a little on it: what is learned well is learned by heart."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=random)
    y = (x[:, 0] + 1.5 * torch.randn(200, generator=random) > 0).long()
    return Dataset("toy", x, y, ("no", "yes"), torch.arange(200), torch.arange(0))


@cache
def trained() -> tuple[Model, Tensor]:
    model = build_model(ModelSpec("mlp"), toy(), 0)
    return model, fit(model.initial, model, Shard(toy(), torch.arange(0, 200, 2)), TRAIN, 99).params


def split(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores[::2], scores[1::2]


@cache
def shadows() -> Shadows:
    return shadows_of(trained()[0], toy().train, TRAIN, 8)


def test_an_over_fitted_model_knows_its_members() -> None:
    model, params = trained()
    members, others = split(by_loss(model, params, toy().train))
    assert auc(members, others) > 0.65
    members, others = split(lira(confidence(model, params, toy().train), shadows()))
    assert auc(members, others) > 0.8
    assert tpr_at(members, others) > 0.1


def test_a_model_with_noise_does_not() -> None:
    model, params = trained()
    change = clipped(params - model.initial, 1.0).float()
    found = []
    for seed in range(20):
        noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(seed))
        released = model.initial + change + noise
        found.append(
            [
                auc(*split(by_loss(model, released, toy().train))),
                auc(*split(lira(confidence(model, released, toy().train), shadows()))),
            ]
        )
    for mean in torch.tensor(found).mean(0).tolist():
        assert mean == pytest.approx(0.5, abs=0.04)


def test_each_example_is_in_half_of_the_shadows() -> None:
    assert shadows().held.shape == shadows().confidences.shape == (8, 200)
    assert shadows().held.sum(0).eq(4).all()
    assert shadows().held.sum(1).eq(100).all()


def test_the_ratio_is_that_of_two_normal_densities() -> None:
    held = torch.tensor([[True], [True], [False], [False]])
    of_members = torch.distributions.Normal(4.0, 1.0)
    of_others = torch.distributions.Normal(1.0, 3.0)
    given = Shadows(torch.tensor([[3.0], [5.0], [-2.0], [4.0]]).double(), held)
    asked = torch.tensor([2.0]).double()
    assert float(lira(asked, given)) == pytest.approx(float(of_members.log_prob(asked) - of_others.log_prob(asked)))


def test_confidence_is_the_logit_of_the_true_class() -> None:
    model, params = trained()
    chances = by_loss(model, params, toy().train).exp()
    torch.testing.assert_close(confidence(model, params, toy().train), chances.logit(), rtol=1e-4, atol=1e-4)
