"""Examples that are rebuilt from gradients."""

from __future__ import annotations

import pytest
import torch

from p2pfl.attacks.gradients import gradient_of
from p2pfl.attacks.inversion import Search, deep_leakage, invert
from p2pfl.attacks.scores import mse, psnr
from p2pfl.learn.data import load_dataset
from p2pfl.learn.model import build_model
from p2pfl.learn.specs import DataSpec, ModelSpec
from p2pfl.privacy.clipping import clipped
from tests.attacks.victims import example, smooth


@pytest.mark.parametrize("seed", range(3))
def test_deep_leakage_finds_example_and_label(seed: int) -> None:
    model, (x, y) = smooth(), example(seed)
    found, chances = deep_leakage(model, model.initial, gradient_of(model, model.initial, x, y), (1, 20), 10)
    assert mse(found, x) < 1e-9
    assert float(chances[0, int(y)]) > 0.999


def test_digits_are_seen_in_a_gradient_and_not_in_a_clipped_and_noised_one() -> None:
    digits = load_dataset(DataSpec("digits"))
    model = build_model(ModelSpec("mlp"), digits, 0)
    random = torch.Generator().manual_seed(0)
    plain, noised = [], []
    for row in digits.train_indices[:4]:
        x, y = digits.batch(row[None])
        gradient = gradient_of(model, model.initial, x, y)
        plain.append(psnr(invert(model, model.initial, gradient, y, x.shape), x))
        flat = clipped(torch.cat([part.reshape(-1) for part in gradient]), 1.0).float()
        flat += 0.2 * torch.randn(flat.shape, generator=random)
        parts = [
            part.view_as(one) for part, one in zip(flat.split([g.numel() for g in gradient]), gradient, strict=True)
        ]
        noised.append(psnr(invert(model, model.initial, tuple(parts), y, x.shape), x))
    assert min(plain) > 13
    assert sum(plain) / 4 > 15
    assert sum(noised) / 4 < 10


def test_images_stay_within_their_box() -> None:
    digits = load_dataset(DataSpec("digits"))
    model = build_model(ModelSpec("mlp"), digits, 0)
    x, y = digits.batch(digits.train_indices[:2])
    search = Search(iterations=20, lr=5.0, low=0.25, high=0.5)
    found = invert(model, model.initial, gradient_of(model, model.initial, x, y), y, x.shape, search)
    assert found.shape == x.shape
    assert (float(found.min()), float(found.max())) == (0.25, 0.5)
