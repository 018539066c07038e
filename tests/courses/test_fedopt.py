"""Server optimizers against torch.optim and formulas in float64; courses against a loop that is written out."""

from math import cos, pi

import numpy as np
import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedopt import (
    FEDAVGM,
    FEDOPT,
    Descent,
    FedAvgMSettings,
    FedOptSettings,
    adagrad,
    adam,
    momentum_sgd,
    yogi,
)  # fmt: skip
from p2pfl.courses.learner import seed_of
from p2pfl.errors import ConfigError
from p2pfl.learn.train import FitResult
from p2pfl.topology.families import build
from tests.courses.kit import Played, fit

ROUNDS = 3
GRADIENTS = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))


def descended(optimizer, lr=0.3):
    """Where these gradients lead to from zero."""
    server = Descent(9, optimizer, lambda round: lr)
    params = torch.zeros(9)
    for round, gradient in enumerate(GRADIENTS):
        params = server.absorb(params, params - gradient, 1.0, round)
    return params


def descended_by_torch(kind, **parameters):
    params = torch.zeros(9, requires_grad=True)
    optimizer = kind([params], lr=0.3, **parameters)
    for gradient in GRADIENTS:
        params.grad = gradient.clone()
        optimizer.step()
    return params.detach()


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torch_s(nesterov):
    expected = descended_by_torch(torch.optim.SGD, momentum=0.9, nesterov=nesterov)
    torch.testing.assert_close(descended(momentum_sgd(0.9, nesterov=nesterov)), expected)


def test_adagrad_without_momentum_is_torch_s():
    expected = descended_by_torch(torch.optim.Adagrad, initial_accumulator_value=0.1**2, eps=0.1)
    torch.testing.assert_close(descended(adagrad(0.0, 0.1)), expected)


def by_formula(kind, gradients, lr=0.3, beta1=0.9, beta2=0.99, tau=0.1):
    """Algorithm 2 in float64, where Delta = -gradient: what the model has moved by after each round."""
    moved, m, v = 0.0, 0.0, tau**2
    for gradient in gradients:
        delta = -np.asarray(gradient, dtype=np.float64)
        m = beta1 * m + (1 - beta1) * delta
        match kind:
            case "adagrad":
                v = v + delta**2
            case "adam":
                v = beta2 * v + (1 - beta2) * delta**2
            case "yogi":
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        moved = moved + lr * m / (np.sqrt(v) + tau)
    return moved


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("adagrad", adagrad(0.9, 0.1)), ("adam", adam(0.9, 0.99, 0.1)), ("yogi", yogi(0.9, 0.99, 0.1))],
)
def test_adaptive_optimizers_are_algorithm_2(kind, optimizer):
    np.testing.assert_allclose(descended(optimizer).numpy(), by_formula(kind, GRADIENTS.numpy()), rtol=1e-5)


def test_what_no_gradient_moves_is_averaged():
    server = Descent(2, momentum_sgd(0.0), lambda round: 0.5)
    params, mean = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 5.0, 7.0])
    assert server.absorb(params, mean, 1.0, 0).tolist() == [2.0, 3.0, 7.0]
    assert (params.tolist(), mean.tolist()) == ([1.0] * 3, [3.0, 5.0, 7.0]), "neither is written to"


@pytest.mark.parametrize("optimizer", [momentum_sgd(0.9), yogi(0.9, 0.99, 0.1)])
def test_moments_survive_and_are_not_written_to(optimizer):
    whole, first = (Descent(9, optimizer, lambda round: 0.3) for _ in range(2))
    params = [torch.zeros(9)]
    for gradient in GRADIENTS:
        params.append(whole.absorb(params[-1], params[-1] - gradient, 1.0, 0))
    first.absorb(params[0], params[0] - GRADIENTS[0], 1.0, 0)
    kept = first.state()
    for _ in range(2):  # what was kept is used twice
        second = Descent(9, optimizer, lambda round: 0.3)
        second.resume(kept)
        assert torch.equal(second.absorb(params[1], params[1] - GRADIENTS[1], 1.0, 0), params[2])


def test_the_server_s_rate_follows_its_schedule():
    step = FedOptSettings(server_lr=2.0, server_schedule="step", server_schedule_rounds=2, server_schedule_factor=0.5)
    assert [step.rate(round) for round in range(5)] == [2.0, 2.0, 1.0, 1.0, 0.5]
    cosine = FedAvgMSettings(server_schedule="cosine", server_schedule_rounds=4, server_schedule_factor=0.0)
    assert cosine.rate(1) == pytest.approx((1 + cos(pi / 4)) / 2)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"server_optimizer": "adamw"}, "server_optimizer"), ({"tau": 0.0}, "tau"), ({"server_lr": 0.0}, "server_lr"),
        ({"server_beta2": 1.0}, "server_beta2"), ({"server_momentum": 1.0}, "server_momentum"),
        ({"server_schedule": "linear"}, "server_schedule"), ({"server_schedule_rounds": 0}, "server_schedule_rounds"),
        ({"server_schedule_factor": -1.0}, "server_schedule_factor"), ({"rounds": 0}, "rounds"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(wrong, field):
    with pytest.raises(ConfigError, match=rf"course\.{field} is .*; it must"):
        FedOptSettings(**wrong)


def test_nesterov_s_momentum_is_sgd_s():
    assert FedOptSettings(server_optimizer="sgd", server_nesterov=True).server_nesterov
    with pytest.raises(ConfigError, match=r"course\.server_nesterov is set, but adam has no such momentum"):
        FedOptSettings(server_nesterov=True)


# -- in a course -------------------------------------------------------------------------------------------------------


def trained(played: Played, params: torch.Tensor, round: int) -> list[FitResult]:
    """What all clients make of a model in a round."""
    return [
        fit(params, played.model, shard, played.train, seed_of(played.seed, "fit", round, seat), round)
        for seat, shard in played.shards.items()
    ]


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
def test_a_course_is_algorithm_2(kind):
    settings = FedOptSettings(rounds=ROUNDS, server_optimizer=kind, tau=0.1, evaluate="none")
    played = Played(FEDOPT, settings, build("star", 4)).play()
    start = params = played.model.initial
    gradients = []
    for round in range(ROUNDS):
        found = trained(played, params, round)
        mean = np.average([each.params.double() for each in found], 0, [each.num_examples for each in found])
        gradients.append(params.numpy() - mean)
        params = torch.from_numpy(start.numpy() + by_formula(kind, gradients, lr=0.1)).float()
    for held in played.params:
        torch.testing.assert_close(held, params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_fedavgm_is_momentum_on_what_clients_move_by(nesterov):
    settings = FedAvgMSettings(
        rounds=ROUNDS, weights="equal", evaluate="none", server_momentum=0.8, server_nesterov=nesterov,
        server_lr=0.5, server_schedule="step", server_schedule_rounds=1, server_schedule_factor=0.7,
    )  # fmt: skip
    played = Played(FEDAVGM, settings, build("star", 4)).play()
    params, velocity = played.model.initial.double(), 0.0
    for round in range(ROUNDS):
        models = torch.stack([found.params.double() for found in trained(played, params.float(), round)])
        gradient = params - models.mean(0)
        velocity = 0.8 * velocity + gradient
        direction = gradient + 0.8 * velocity if nesterov else velocity
        params = params - 0.5 * 0.7**round * direction
    torch.testing.assert_close(played.params[0], params.float(), rtol=1e-4, atol=1e-5)


def test_sgd_at_a_rate_of_one_is_federated_averaging():
    plain = Played(FEDAVG, FedAvgSettings(rounds=ROUNDS, evaluate="none"), build("star", 4)).play()
    settings = FedOptSettings(rounds=ROUNDS, server_optimizer="sgd", server_lr=1.0, server_momentum=0.0)
    played = Played(FEDOPT, settings, build("star", 4)).play()
    torch.testing.assert_close(played.params[0], plain.params[0], rtol=1e-4, atol=1e-5)
