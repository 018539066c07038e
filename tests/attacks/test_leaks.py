"""What a gradient shows as it is: published figures, and the closed form of the error that noise makes."""

from __future__ import annotations

import pytest
import torch

from p2pfl.attacks.gradients import gradient_of
from p2pfl.attacks.leaks import label, layer_input
from p2pfl.attacks.scores import mse
from tests.attacks.victims import example, relu


@pytest.mark.parametrize("seed", range(5))
def test_a_lone_example_lies_open(seed: int) -> None:
    model, (x, y) = relu(), example(seed)
    gradient = gradient_of(model, model.initial, x, y)
    assert float((layer_input(gradient[0], gradient[1]) - x[0]).abs().max()) < 5e-7
    assert label(gradient[-1]) == int(y)


def test_noise_hides_it_as_much_as_it_should() -> None:
    """To first order, noise s on both gradients of a row makes an error of s² (1 + mean of x²) / db²."""
    model, (x, y) = relu(), example()
    weight, bias, *_ = gradient_of(model, model.initial, x, y)
    random = torch.Generator().manual_seed(0)
    errors = {}
    for deviation in (1e-4, 1e-3, 1e-2, 1e-1):
        found = []
        for _ in range(200):
            noised = [part + deviation * torch.randn(part.shape, generator=random) for part in (weight, bias)]
            found.append(mse(layer_input(*noised), x[0]))
        errors[deviation] = sum(found) / len(found)
    expected = 1e-8 * float((1 + x.square().mean()) / bias.abs().max() ** 2)
    assert errors[1e-4] == pytest.approx(expected, rel=0.2)
    assert errors[1e-3] == pytest.approx(100 * expected, rel=0.25)
    assert 1e-3 < errors[1e-2] < 0.2
    assert errors[1e-1] > 0.15


def test_of_a_batch_it_is_a_mean() -> None:
    weight = torch.tensor([[0.5 * 1 + 0.25 * 3]])
    assert float(layer_input(weight, torch.tensor([0.75]))) == pytest.approx(1.25 / 0.75)


def test_dead_units_tell_nothing() -> None:
    assert layer_input(torch.zeros(3, 2), torch.zeros(3)).isnan().all()
