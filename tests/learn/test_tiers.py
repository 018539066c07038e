"""The choice of tiers, and that no client's result depends on it or on the other clients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn import tiers
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.specs import DataSpec, ModelSpec, TrainSpec
from p2pfl.learn.tiers import Tier, fit_all, fit_one, tier_of
from p2pfl.learn.train import Fit, fit_plainly


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSpec(), seed=0)


def model_of(module: nn.Module, digits: Dataset) -> Model:
    return Model.of(nn.Sequential(nn.Flatten(), module), functional.cross_entropy, *digits.batch(torch.arange(2)))


@pytest.mark.parametrize(
    ("model", "spec", "tier"),
    [
        (ModelSpec(), TrainSpec(), "cohort"),
        (ModelSpec(), TrainSpec(momentum=0.9, weight_decay=0.1, proximal=1, schedule="cosine"), "cohort"),
        (ModelSpec(), TrainSpec(clip=1.0), "plain (clip is set; no linear layer is large)"),
        (ModelSpec(), TrainSpec(optimizer="Adam"), "plain (optimizer is Adam; no linear layer is large)"),
        (ModelSpec(), TrainSpec(sam_rho=0.1), "plain (sam_rho is set; no linear layer is large)"),
        (ModelSpec(), TrainSpec(precision="bfloat16"), "plain (precision is bfloat16; no linear layer is large)"),
        (ModelSpec(), TrainSpec(accumulate=2), "plain (accumulate is set; no linear layer is large)"),
        (ModelSpec(), TrainSpec(label_smoothing=0.1), "plain (label_smoothing is set; no linear layer is large)"),
        (ModelSpec(name="cnn"), TrainSpec(label_smoothing=0.1), "fused (its forward uses conv2d)"),
        (ModelSpec(name="cnn"), TrainSpec(), "fused (its forward uses conv2d)"),
        (ModelSpec(name="cnn"), TrainSpec(clip=1.0), "plain (its forward uses conv2d; clip is set)"),
        (ModelSpec(name="cnn", hidden=(16,)), TrainSpec(), "plain (its forward uses conv2d; no linear layer is large)"),
        (ModelSpec(), TrainSpec(tier="plain"), "plain (train.tier is plain)"),
        (ModelSpec(name="cnn"), TrainSpec(tier="fused"), "fused (train.tier is fused)"),
        (ModelSpec(), TrainSpec(tier="cohort"), "cohort"),
    ],
)
def test_the_choice(digits: Dataset, model: ModelSpec, spec: TrainSpec, tier: str) -> None:
    assert str(tier_of(build_model(model, digits, 0), spec)) == tier


def test_modules_that_a_cohort_cannot_train(digits: Dataset) -> None:
    class Counted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.register_buffer("seen", torch.zeros(3))

    assert tier_of(model_of(Counted(), digits), TrainSpec()).reason.startswith("it has buffers")
    dropout = model_of(nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5)), digits)
    assert tier_of(dropout, TrainSpec()) == Tier("plain", "it has dropout of 0.5; no linear layer is large")

    def noisy(outputs: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(outputs + torch.randn(10), y)

    model = Model.of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), noisy, *digits.batch(torch.arange(2)))
    assert tier_of(model, TrainSpec()).reason.startswith("it draws random numbers")


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("mlp", TrainSpec(tier="cohort", clip=1.0), "train.tier is cohort, but clip is set; set it to auto"),
        ("cnn", TrainSpec(tier="cohort"), "train.tier is cohort, but its forward uses conv2d"),
        ("mlp", TrainSpec(tier="fused"), "train.tier is fused, but no linear layer is large"),
    ],
)
def test_a_tier_that_cannot(digits: Dataset, name: str, spec: TrainSpec, words: str) -> None:
    model = build_model(ModelSpec(name=name), digits, 0)
    with pytest.raises(ConfigError, match=words):
        fit_one(Fit(model.initial, model, digits.train, spec, 0))


def test_specs_that_are_equal_are_trained_together(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(ModelSpec(), digits, 0)
    shard, sizes = Shard(digits, digits.train_indices[:9]), []
    outcomes = tiers._outcomes
    monkeypatch.setattr(tiers, "_outcomes", lambda fits: sizes.append(len(fits)) or outcomes(fits))
    specs = [TrainSpec(proximal=0.1), TrainSpec(proximal=0.2), TrainSpec(proximal=0.1), TrainSpec(proximal=0.2)]
    fits = [Fit(model.initial, model, shard, spec, 0) for spec in specs]
    first, second, third, fourth = (found.params for found in fit_all(fits))
    assert sizes == [2, 2]
    assert torch.equal(first, third) and torch.equal(second, fourth) and not torch.equal(first, second)


@pytest.mark.parametrize(("tier", "sizes"), [("cohort", [5]), ("functional", [1, 2, 2])])
def test_who_does_more_or_less_of_the_same_is_trained_with_the_others(
    tier: str, sizes: list[int], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(ModelSpec(), digits, 0)
    shard, seen = Shard(digits, digits.train_indices[:9]), []
    outcomes = tiers._outcomes
    monkeypatch.setattr(tiers, "_outcomes", lambda fits: seen.append(len(fits)) or outcomes(fits))
    work = ({}, {"epochs": 3}, {"steps": 9}, {"steps": 4}, {"steps": 4, "within_seconds": 1.0})
    fits = [Fit(model.initial, model, shard, TrainSpec(batch_size=3, tier=tier, **some), 0) for some in work]
    found = fit_all(fits)
    assert sorted(seen) == sizes
    for result, fit in zip(found, fits, strict=True):
        alone = fit_one(fit)
        assert result.steps == alone.steps and torch.allclose(result.params, alone.params, atol=1e-6)
        assert tier == "functional" or torch.equal(result.params, alone.params)


def test_smoothing_of_labels_that_a_loss_does_not_have(digits: Dataset) -> None:
    model = Model.of(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), functional.nll_loss, *digits.batch(torch.arange(2))
    )
    with pytest.raises(ConfigError, match=r"train.label_smoothing is set, but model.loss is not cross_entropy"):
        tier_of(model, TrainSpec(label_smoothing=0.1))


def test_a_tier_that_is_none() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.tier is 'fast'; it must be one of auto, cohort, functional, fused, plain"
    ):
        TrainSpec(tier="fast")


def mixed(digits: Dataset) -> list[Fit]:
    """Clients of several models, specs, rounds and sizes, one without examples."""
    mlp, cnn = (build_model(ModelSpec(name=name), digits, 0) for name in ("mlp", "cnn"))
    specs = [
        TrainSpec(batch_size=8, schedule="step", schedule_rounds=1),
        TrainSpec(batch_size=8, momentum=0.5),
        TrainSpec(batch_size=8, clip=0.5),
    ]
    return [
        Fit(model.initial, model, Shard(digits, digits.train_indices[:size]), spec, seed, round)
        for seed, (model, spec, size, round) in enumerate(
            (model, spec, size, round)
            for model, sizes in ((mlp, (5, 17, 0, 40)), (cnn, (10,)))
            for spec in specs
            for size in sizes
            for round in (0, 1)
        )
    ]


def test_everybody_gets_the_same_alone(digits: Dataset) -> None:
    fits = mixed(digits)
    for work, found in zip(fits, fit_all(fits), strict=True):
        alone, plain = fit_one(work), fit_plainly(work)
        assert torch.equal(found.params, alone.params)
        assert torch.allclose(found.params, plain.params, rtol=1e-5, atol=1e-6)
        assert (found.num_examples, found.steps) == (plain.num_examples, plain.steps)
        norms = [(result.params - work.params).norm().item() for result in (found, plain)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert fit_all([]) == []


def test_errors_reach_only_whose_they_are(digits: Dataset) -> None:
    model = build_model(ModelSpec(name="logistic"), digits, 0)
    bad = Dataset("bad", digits.x, digits.y + 1, (), digits.train_indices, digits.test_indices)
    good = [Fit(model.initial, model, Shard(digits, digits.train_indices[:9]), TrainSpec(), seed) for seed in range(3)]
    spec = good[0].spec
    fits = [
        replace(good[0], spec=spec),
        replace(good[1], spec=spec, shard=Shard(bad, digits.train_indices[:9])),
        replace(good[2], spec=spec),
        replace(good[2], params=torch.zeros(3)),
        replace(good[2], spec=TrainSpec(tier="cohort", clip=1.0)),
        replace(good[2], shard=Shard(bad, digits.train_indices[:0])),
    ]
    found = fit_all(fits)
    assert isinstance(found[1], (IndexError, RuntimeError))
    assert isinstance(found[3], ConfigError)
    assert isinstance(found[4], ConfigError)
    assert found[5].steps == 0
    for at in (0, 2):
        assert torch.equal(found[at].params, fit_one(fits[at]).params)


def test_data_that_cannot_go_through_a_chain_is_trained_all_the_same() -> None:
    x, y = torch.randn(12, 4, 6), torch.randint(3, (12, 3))
    model = Model.of(nn.Linear(6, 3), functional.cross_entropy, x[:2], y[:2])
    dataset = Dataset("rows", x, y, (), torch.arange(12), torch.arange(0))
    work = Fit(model.initial, model, dataset.train, TrainSpec(), 0)
    assert torch.equal(fit_one(work).params, fit_plainly(work).params)
