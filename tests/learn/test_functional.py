"""Small models of any kind, many at once: the same as one by one, to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.functional import fit_functional
from p2pfl.learn.model import Model
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.tiers import fit_all, tier_of
from p2pfl.learn.train import Fit, fit_plainly


class Residual(nn.Module):
    """No chain: a normalisation, and a sum of two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.relu(self.first(x)))
        out: Tensor = self.last(h + torch.tanh(self.second(h)))
        return out


def dataset(rows: int = 60) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 6, generator=generator), torch.randint(3, (rows,), generator=generator)
    return Dataset("noise", x, y, ("a", "b", "c"), torch.arange(rows), torch.arange(0))


def fits_of(sizes: list[int], spec: TrainSpec, module: nn.Module | None = None, drift: bool = False) -> list[Fit]:
    torch.manual_seed(1)
    data = dataset()
    model = Model.of(module or Residual(), functional.cross_entropy, data.x[:4], data.y[:4])
    vectors = [model.initial + 0.01 * seed for seed in range(len(sizes))]
    drifts = [torch.full_like(model.initial, 0.02) if drift else None for _ in sizes]
    return [
        Fit(vector, model, Shard(data, data.train_indices[:size]), spec, seed, 1, d)
        for seed, (vector, size, d) in enumerate(zip(vectors, sizes, drifts, strict=True))
    ]


SPECS = [
    TrainSpec(lr=0.1, batch_size=4, epochs=2),
    TrainSpec(lr=0.1, batch_size=4, steps=7, momentum=0.9),
    TrainSpec(lr=0.1, batch_size=5, weight_decay=0.1, proximal=0.5, schedule="step", schedule_rounds=1),
    TrainSpec(lr=0.1, batch_size=5, momentum=0.5, weight_decay=0.1, proximal=0.5, drop_last=True),
    TrainSpec(lr=0.1, batch_size=100),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("drift", [False, True])
def test_it_gives_what_the_plain_tier_gives(spec: TrainSpec, drift: bool) -> None:
    spec = replace(spec, tier="functional")
    fits = fits_of([12, 7, 12, 13, 7, 1, 0, 12], spec, drift=drift)
    for found, fit in zip(fit_all(fits), fits, strict=True):
        assert not isinstance(found, Exception)
        plain = fit_plainly(fit)
        torch.testing.assert_close(found.params, plain.params, rtol=1e-5, atol=1e-5)
        assert found.steps == plain.steps
        assert found.num_examples == plain.num_examples
        assert found.loss == pytest.approx(plain.loss, rel=1e-4, nan_ok=True)


def test_more_clients_than_go_together() -> None:
    fits = fits_of([6] * 61, TrainSpec(lr=0.1, batch_size=3, tier="functional"))
    found = fit_functional(fits)
    assert len(found) == 61
    torch.testing.assert_close(found[60].params, fit_plainly(fits[60]).params, rtol=1e-5, atol=1e-5)


def test_it_runs_where_it_is_asked_for_and_nowhere_else() -> None:
    model = fits_of([6], TrainSpec())[0].model
    assert tier_of(model, TrainSpec()).name == "plain"
    assert str(tier_of(model, TrainSpec(tier="functional"))) == "functional (train.tier is functional)"


@pytest.mark.parametrize(
    ("module", "spec", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), TrainSpec(), "it has buffers"),
        (nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), TrainSpec(), "it draws random numbers"),
        (None, TrainSpec(clip=1.0), "clip is set"),
        (None, TrainSpec(optimizer="Adam"), "optimizer is Adam"),
    ],
)
def test_what_it_cannot_is_refused_with_the_reason(module: nn.Module | None, spec: TrainSpec, reason: str) -> None:
    spec = replace(spec, tier="functional")
    with pytest.raises(ConfigError, match=f"train.tier is functional, but {reason}"):
        tier_of(fits_of([6], spec, module)[0].model, spec)
