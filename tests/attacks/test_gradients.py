"""Gradients of guesses, and those that an update implies."""

from __future__ import annotations

import torch

from p2pfl.attacks.gradients import gradient_of, guessing, implied_gradients
from p2pfl.learn.data import Shard
from p2pfl.learn.model import build_model
from p2pfl.learn.specs import ModelSpec, TrainSpec
from p2pfl.learn.train import fit
from tests.attacks.victims import example, smooth
from tests.courses.kit import dataset


def test_one_step_of_training_gives_its_gradient_away() -> None:
    data = dataset()
    model = build_model(ModelSpec("mlp"), data, 0)
    shard = Shard(data, data.train_indices[:4])
    update = fit(model.initial, model, shard, TrainSpec(batch_size=4, lr=0.25), 0).params
    for found, true in zip(
        implied_gradients(model, model.initial, update, 0.25),
        gradient_of(model, model.initial, *data.batch(shard.indices)),
        strict=True,
    ):
        torch.testing.assert_close(found, true, atol=1e-6, rtol=1e-4)


def test_two_steps_give_their_mean() -> None:
    model = smooth()
    ones = torch.ones(model.layout.numel)
    for part in implied_gradients(model, ones, ones - 0.5, lr=0.25, steps=2):
        torch.testing.assert_close(part, torch.ones_like(part))


def test_a_guess_can_be_improved_and_the_weights_stay() -> None:
    model, (x, y) = smooth(), example()
    params = model.initial.clone()
    guess = x.clone().requires_grad_()
    with guessing(model, params) as gradient:
        size = gradient(guess, y)[0].square().sum()
        (slope,) = torch.autograd.grad(size, guess)
        step = 1e-3 * slope / slope.norm()
        assert gradient(guess - step, y)[0].square().sum() < size
    assert torch.equal(params, model.initial)


def test_classes_and_certain_chances_are_the_same() -> None:
    model, (x, y) = smooth(), example()
    chances = torch.nn.functional.one_hot(y, 10).float()
    for one, other in zip(
        gradient_of(model, model.initial, x, y), gradient_of(model, model.initial, x, chances), strict=True
    ):
        torch.testing.assert_close(one, other)
