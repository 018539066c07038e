"""Local training against torch's own loop, against closed forms, and as a federation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.params import bind, flatten
from p2pfl.learn.partition import partition
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.learn.tiers import fit_one, tier_of
from p2pfl.learn.train import Fit, fit, fit_plainly, learning_rate


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSpec(), seed=0)


def reference(model: Model, shard: Shard, spec: TrainSpec, seed: int, optimizer: type, **parameters: object) -> Tensor:
    """The loop that anyone writes: state on the module, torch.optim, backward()."""
    module = model.copy().module
    bind(module, model.initial.clone())
    module.train()
    algorithm = optimizer(module.parameters(), lr=spec.lr, **parameters)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(spec.epochs):
        order = shard.indices[torch.randperm(len(shard), generator=generator)]
        for rows in order.split(spec.batch_size):
            algorithm.zero_grad()
            outputs, targets = module(shard.dataset.x[rows]), shard.dataset.y[rows]
            functional.cross_entropy(outputs, targets, label_smoothing=spec.label_smoothing).backward()
            algorithm.step()
    return flatten(module)


def small(digits: Dataset) -> Shard:
    return Shard(digits, digits.train_indices[100:147])


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "tolerance"), [(0.0, 0.0, 0.0), (0.9, 0.0, 0.0), (0.0, 0.1, 1e-6), (0.8, 0.05, 1e-6)]
)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_plain_sgd_is_torchs(
    digits: Dataset, name: str, momentum: float, weight_decay: float, tolerance: float
) -> None:
    model = build_model(ModelSpec(name=name, hidden=(16,)), digits, 1)
    spec = TrainSpec(epochs=2, batch_size=10, momentum=momentum, weight_decay=weight_decay)
    expected = reference(
        model, small(digits), spec, 7, torch.optim.SGD, momentum=momentum, weight_decay=weight_decay, foreach=False
    )
    found = fit(model.initial, model, small(digits), spec, seed=7)
    assert torch.allclose(found.params, expected, rtol=0, atol=tolerance)
    assert not torch.equal(found.params, model.initial)
    assert (found.num_examples, found.steps) == (47, 10)


def test_other_optimizers_are_torchs(digits: Dataset) -> None:
    model = build_model(ModelSpec(), digits, 1)
    spec = TrainSpec(
        epochs=2, batch_size=10, lr=0.01, optimizer="AdamW", weight_decay=0.1, optimizer_parameters={"eps": 1e-6}
    )
    expected = reference(model, small(digits), spec, 7, torch.optim.AdamW, weight_decay=0.1, eps=1e-6)
    found = fit(model.initial, model, small(digits), spec, seed=7)
    assert torch.allclose(found.params, expected, rtol=0, atol=1e-6)


def test_momentum_is_the_same_by_name_and_by_hand_with_every_pull(digits: Dataset) -> None:
    model = build_model(ModelSpec(), digits, 1)
    drift = torch.linspace(-0.1, 0.1, model.layout.numel)
    shared = {"epochs": 2, "batch_size": 10, "weight_decay": 0.03, "proximal": 0.4, "clip": 0.5}
    ours = TrainSpec(momentum=0.7, **shared)
    theirs = TrainSpec(optimizer="SGD", optimizer_parameters={"momentum": 0.7}, **shared)
    plain = TrainSpec(**shared)
    also_plain = TrainSpec(optimizer="SGD", **shared)
    for first, second in ((ours, theirs), (plain, also_plain)):
        a, b = (fit(model.initial, model, small(digits), spec, 3, drift=drift).params for spec in (first, second))
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_one_step_of_logistic_regression_in_closed_form(digits: Dataset) -> None:
    model = build_model(ModelSpec(name="logistic"), digits, 0)
    shard = small(digits)
    x, y = digits.batch(shard.indices)
    weight, bias = model.initial[:640].reshape(10, 64), model.initial[640:]
    error = torch.softmax(x.flatten(1) @ weight.T + bias, 1) - functional.one_hot(y, 10)
    gradient = torch.cat([(error.T @ x.flatten(1)).flatten(), error.sum(0)]) / len(y)
    found = fit(model.initial, model, shard, TrainSpec(lr=0.3, batch_size=100), seed=0)
    assert torch.allclose(found.params, model.initial - 0.3 * gradient, atol=1e-6)
    assert found.loss == pytest.approx(evaluate(model.initial, model, shard).loss, rel=1e-5)


def test_proximal_steps_in_closed_form() -> None:
    """With no gradient, w moves towards w0 by lr mu (w - w0); the drift alone moves it by -lr drift each step."""
    x, y = torch.zeros(4, 2), torch.zeros(4)
    model = Model.of(nn.Linear(2, 1, bias=False), lambda outputs, y: (outputs.squeeze(1) - y).square().mean(), x, y)
    shard = Shard(Dataset("zeros", x, y, (), torch.arange(4), torch.arange(0)), torch.arange(4))
    drift = torch.tensor([1.0, -2.0])
    found = fit(model.initial, model, shard, TrainSpec(steps=2, batch_size=4, lr=0.1, proximal=0.5), 0, drift=drift)
    # w1 = w0 - 0.1 d; w2 = w1 - 0.1 (0.5 (w1 - w0) + d) = w0 - 0.195 d
    assert torch.allclose(found.params, model.initial - 0.195 * drift, atol=1e-6)


def test_clipping_bounds_the_step(digits: Dataset) -> None:
    model = build_model(ModelSpec(), digits, 0)
    found = fit(model.initial, model, small(digits), TrainSpec(steps=1, lr=1.0, clip=0.01), 0)
    assert (found.params - model.initial).norm().item() == pytest.approx(0.01, rel=1e-3)
    loose = fit(model.initial, model, small(digits), TrainSpec(steps=1, lr=1.0, clip=1e6), 0)
    assert torch.equal(loose.params, fit(model.initial, model, small(digits), TrainSpec(steps=1, lr=1.0), 0).params)


@pytest.mark.parametrize("tier", ["plain", "functional"])
def test_smoothed_labels_are_torchs(digits: Dataset, tier: str) -> None:
    model = build_model(ModelSpec(), digits, 1)
    spec = TrainSpec(epochs=2, batch_size=10, label_smoothing=0.2, tier=tier)
    expected = reference(model, small(digits), spec, 7, torch.optim.SGD)
    found = fit_one(Fit(model.initial, model, small(digits), spec, 7))
    assert torch.allclose(found.params, expected, rtol=0, atol=1e-6)


def test_mixed_precision_is_torchs(digits: Dataset) -> None:
    model = build_model(ModelSpec(), digits, 1)
    spec = TrainSpec(epochs=2, batch_size=10, precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # or it would go on with the first weights
        expected = reference(model, small(digits), spec, 7, torch.optim.SGD)
    found = fit_one(Fit(model.initial, model, small(digits), spec, 7)).params
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    whole = fit_one(Fit(model.initial, model, small(digits), replace(spec, precision="float32"), 7)).params
    assert 1e-5 < float((found - whole).abs().max()) < 1e-2, "it is rounded, and no more"


def test_smoothed_labels_in_the_fused_tier(digits: Dataset) -> None:
    model = build_model(ModelSpec(hidden=(600,)), digits, 1)
    spec = TrainSpec(epochs=2, batch_size=10, label_smoothing=0.2)
    assert tier_of(model, spec).name == "fused"
    work = Fit(model.initial, model, small(digits), spec, 7)
    assert torch.allclose(fit_one(work).params, fit_plainly(work).params, rtol=0, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"momentum": 0.9}, {"clip": 0.1}, {"sam_rho": 0.2}, {"optimizer": "Adam"}])
@pytest.mark.parametrize("batch", [2, 5, 7])
def test_accumulated_batches_are_a_large_one(digits: Dataset, batch: int, more: dict[str, float]) -> None:
    model = build_model(ModelSpec(), digits, 1)
    many, few = (TrainSpec(epochs=2, lr=0.01, **size, **more) for size in (
        {"batch_size": batch, "accumulate": 4}, {"batch_size": 4 * batch}
    ))  # fmt: skip
    a, b = (fit(model.initial, model, small(digits), spec, 3) for spec in (many, few))
    assert torch.allclose(a.params, b.params, rtol=0, atol=1e-4 if "optimizer" in more else 1e-6)
    assert a.steps == b.steps
    assert a.loss == pytest.approx(b.loss, rel=1e-5)


def test_gradients_that_are_one_tensor_are_scaled_once() -> None:
    """torch gives the same tensor for both biases of a sum."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.zeros(1, 2)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.first) + self.second

    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    model = Model.of(Twice(), lambda outputs, y: (outputs * y).sum(), x, y)
    shard = Shard(Dataset("one", x, y, (), torch.arange(1), torch.arange(0)), torch.arange(1))
    drift = torch.tensor([10.0, 20.0, 30.0, 40.0])
    for spec, expected in (
        (TrainSpec(lr=1.0, clip=0.5 * math.sqrt(50)), torch.tensor([1.5, 2.0, 1.5, 2.0]) + drift),
        (TrainSpec(lr=1.0, optimizer="SGD"), torch.tensor([3.0, 4.0, 3.0, 4.0]) + drift),
    ):
        found = fit(model.initial, model, shard, spec, 0, drift=drift)
        assert torch.allclose(found.params, -expected, atol=1e-5)


def test_fit_is_a_pure_function(digits: Dataset) -> None:
    model = build_model(ModelSpec(), digits, 0)
    before = model.initial.clone()
    spec = TrainSpec(epochs=2, momentum=0.9)
    first = fit(model.initial, model, small(digits), spec, seed=11)
    fit(first.params, model, digits.train, spec, seed=12)
    again = fit(model.initial, model.copy(), small(digits), spec, seed=11)
    assert torch.equal(first.params, again.params)
    assert first.loss == again.loss
    assert torch.equal(before, model.initial)
    assert not torch.equal(first.params, fit(model.initial, model, small(digits), spec, seed=13).params)


def test_running_statistics_travel_in_the_vector_and_are_not_decayed(digits: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model = Model.of(module, functional.cross_entropy, *digits.batch(digits.train_indices[:4]))
    size = model.layout.trainable_numel
    spec = TrainSpec(steps=1, batch_size=47, weight_decay=0.5, lr=0.1)
    found = fit(model.initial, model, small(digits), spec, 0)
    x = digits.batch(small(digits).indices)[0].flatten(1)
    assert torch.allclose(found.params[size : size + 64], 0.1 * x.mean(0), atol=1e-6)
    assert torch.allclose(found.params[size + 64 :], 0.9 + 0.1 * x.var(0), atol=1e-6)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fit(model.initial, model, small(digits), TrainSpec(batch_size=46), 0)
    assert fit(model.initial, model, small(digits), TrainSpec(batch_size=46, drop_last=True), 0).steps == 1


def test_parameters_that_the_loss_does_not_reach_stay() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    x, y = torch.eye(2), torch.tensor([0, 1])
    model = Model.of(Half(), functional.cross_entropy, x, y)
    shard = Shard(Dataset("two", x, y, ("a", "b"), torch.arange(2), torch.arange(0)), torch.arange(2))
    moved = fit(model.initial, model, shard, TrainSpec(), 0).params - model.initial
    assert moved[:6].any()
    assert not moved[6:].any()


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (TrainSpec(epochs=3, batch_size=10), 15),
        (TrainSpec(epochs=3, batch_size=10, drop_last=True), 12),
        (TrainSpec(epochs=3, batch_size=1000, drop_last=True), 3),
        (TrainSpec(steps=7, batch_size=10), 7),
        (TrainSpec(steps=2, batch_size=10), 2),
        (TrainSpec(steps=5, batch_size=10), 5),
    ],
)
def test_local_work(digits: Dataset, spec: TrainSpec, steps: int) -> None:
    model = build_model(ModelSpec(name="logistic"), digits, 0)
    assert fit(model.initial, model, small(digits), spec, 0).steps == steps


def test_a_client_without_examples_gives_the_parameters_back(digits: Dataset) -> None:
    model = build_model(ModelSpec(name="logistic"), digits, 0)
    found = fit(model.initial, model, Shard(digits, digits.train_indices[:0]), TrainSpec(steps=3), 0)
    assert torch.equal(found.params, model.initial)
    assert (found.num_examples, found.steps) == (0, 0)
    assert math.isnan(found.loss)


def test_schedules() -> None:
    step = TrainSpec(lr=1.0, schedule="step", schedule_rounds=10, schedule_factor=0.5)
    assert [learning_rate(step, r) for r in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    cosine = TrainSpec(lr=1.0, schedule="cosine", schedule_rounds=100, schedule_factor=0.2)
    assert [learning_rate(cosine, r) for r in (0, 50, 100, 200)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert learning_rate(TrainSpec(lr=0.3), 99) == 0.3


def test_the_round_rules_the_rate(digits: Dataset) -> None:
    model = build_model(ModelSpec(name="logistic"), digits, 0)
    spec = TrainSpec(steps=1, lr=0.4, schedule="step", schedule_rounds=1, schedule_factor=0.5)
    late = fit(model.initial, model, small(digits), spec, 0, round=1).params
    assert torch.equal(late, fit(model.initial, model, small(digits), TrainSpec(steps=1, lr=0.2), 0).params)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TrainSpec(optimizer="Adamm"), "train.optimizer 'Adamm' is unknown; did you mean 'Adam"),
        (TrainSpec(optimizer="Adam", optimizer_parameters={"speed": 3}), "Adam does not take its parameters: .*speed"),
    ],
)
def test_mistakes(digits: Dataset, spec: TrainSpec, words: str) -> None:
    model = build_model(ModelSpec(name="logistic"), digits, 0)
    with pytest.raises(ConfigError, match=words):
        fit(model.initial, model, small(digits), spec, 0)


def test_federated_averaging_learns_the_digits(digits: Dataset) -> None:
    """Eight clients with Dirichlet(0.3) labels; known answer: about 0.41, 0.88, 0.94 after 1, 5, 10 rounds."""
    shards = partition(digits, PartitionSpec(scheme="dirichlet", alpha=0.3), clients=8, seed=2)
    model = build_model(ModelSpec(name="mlp", hidden=(32,)), digits, seed=2)
    spec = TrainSpec(epochs=5, batch_size=16, lr=0.1)
    weights, accuracy = model.initial, {}
    for number in range(1, 21):
        results = [fit(weights, model, shard, spec, seed=100 * number + seat) for seat, shard in enumerate(shards)]
        examples = sum(result.num_examples for result in results)
        weights = torch.stack([result.params * (result.num_examples / examples) for result in results]).sum(0)
        accuracy[number] = evaluate(weights, model, digits.test).accuracy
    assert 0.3 < accuracy[1] < 0.6
    assert accuracy[5] > 0.8
    assert accuracy[10] > 0.9
    assert accuracy[20] >= 0.93
