"""The climb of SAM and ASAM against closed forms, and both in training against loops as anyone would write them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.params import bind, flatten
from p2pfl.learn.sharpness import climb, norm
from p2pfl.learn.specs import DataSpec, ModelSpec, TrainSpec
from p2pfl.learn.train import fit


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSpec(), seed=0)


def test_the_radius_is_shared_by_all_weights() -> None:
    weights, gradients = [torch.zeros(2), torch.zeros(1)], (torch.tensor([2.0, 4.0]), torch.tensor([4.0]))
    climb(weights, gradients, 3.0, adaptive=False)
    assert torch.allclose(torch.cat(weights), torch.tensor([1.0, 2.0, 2.0]))
    assert torch.cat(gradients).tolist() == [2, 4, 4], "two of them may be one tensor"


def test_an_adaptive_radius_is_in_proportion_to_the_weights() -> None:
    weights = [torch.tensor([2.99, -1.99])]
    climb(weights, (torch.tensor([1.0, 2.0]),), 0.5, adaptive=True)
    # T g = (3, 4), of length 5; T T g = (9, 8)
    assert torch.allclose(weights[0], torch.tensor([2.99 + 0.9, -1.99 + 0.8]))


def test_where_nothing_slopes_nothing_moves() -> None:
    weights = [torch.ones(2)]
    for adaptive in (False, True):
        climb(weights, (torch.zeros(2),), 1.0, adaptive=adaptive)
    assert weights[0].tolist() == [1, 1]


def test_the_norm() -> None:
    assert norm((torch.tensor([[2.0, 1.0]]), torch.tensor([2.0]))).item() == 3


def by_hand(model: Model, shard: Shard, spec: TrainSpec, seed: int) -> torch.Tensor:
    """SAM and ASAM, with momentum SGD of torch below, as their authors' code has them."""
    module = model.copy().module
    bind(module, model.initial.clone())
    module.train()
    below = torch.optim.SGD(module.parameters(), lr=spec.lr, momentum=spec.momentum)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(spec.epochs):
        order = shard.indices[torch.randperm(len(shard), generator=generator)]
        for rows in order.split(spec.batch_size):
            x, y = shard.dataset.x[rows], shard.dataset.y[rows]
            below.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            with torch.no_grad():
                scales = [p.abs() + 0.01 if spec.sam_adaptive else torch.ones_like(p) for p in module.parameters()]
                pairs = list(zip(module.parameters(), scales, strict=True))
                length = torch.cat([(scale * p.grad).flatten() for p, scale in pairs]).norm()
                moves = [scale * scale * p.grad * spec.sam_rho / length for p, scale in pairs]
                for parameter, move in zip(module.parameters(), moves, strict=True):
                    parameter += move
            below.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            with torch.no_grad():
                for parameter, move in zip(module.parameters(), moves, strict=True):
                    parameter -= move
            below.step()
    return flatten(module)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.1, False), (1.0, True)])
def test_training_is_the_loop_that_the_papers_have(
    digits: Dataset, rho: float, adaptive: bool, momentum: float
) -> None:
    model = build_model(ModelSpec(hidden=(16,)), digits, 1)
    shard = Shard(digits, digits.train_indices[100:147])
    spec = TrainSpec(epochs=2, batch_size=10, momentum=momentum, sam_rho=rho, sam_adaptive=adaptive)
    found = fit(model.initial, model, shard, spec, seed=7)
    assert torch.allclose(found.params, by_hand(model, shard, spec, 7), rtol=0, atol=1e-5)
    plain = fit(model.initial, model, shard, TrainSpec(epochs=2, batch_size=10, momentum=momentum), seed=7)
    assert not torch.allclose(found.params, plain.params, rtol=0, atol=1e-3)


def test_running_statistics_do_not_see_the_climb(digits: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 10))
    model = Model.of(module, functional.cross_entropy, *digits.batch(digits.train_indices[:4]))
    shard = Shard(digits, digits.train_indices[:40])
    spec = {"steps": 1, "batch_size": 40}
    statistics = [
        fit(model.initial, model, shard, TrainSpec(**spec, sam_rho=rho), 0).params[model.layout.trainable_numel :]
        for rho in (0.0, 5.0)
    ]
    assert torch.equal(*statistics)
