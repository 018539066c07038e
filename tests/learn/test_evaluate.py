"""Evaluation on values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.evaluate import Evaluation, evaluate
from p2pfl.learn.model import LOSSES, Loss, Model

X = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 3.0], [5.0, 1.0]])


def evaluated(y: Tensor, loss: Loss, weights: Tensor, batch_size: int = 2) -> tuple[float, float | None, int]:
    module = nn.Linear(2, len(weights), bias=False)
    model = Model.of(module, loss, X, y)
    shard = Shard(Dataset("five", X, y, (), torch.arange(5), torch.arange(0)), torch.arange(5))
    found = evaluate(weights.flatten(), model, shard, batch_size)
    return found.loss, found.accuracy, found.num_examples


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_classes(batch_size: int) -> None:
    y = torch.tensor([0, 1, 1, 1, 0])
    loss, accuracy, count = evaluated(y, functional.cross_entropy, torch.eye(2), batch_size)
    assert loss == pytest.approx(functional.cross_entropy(X, y).item(), rel=1e-6)
    assert (accuracy, count) == (0.8, 5)


def test_two_classes_by_one_logit() -> None:
    _, accuracy, _ = evaluated(torch.tensor([1, 0, 1, 0, 0]), LOSSES["bce"], torch.tensor([[1.0, -1.0]]))
    assert accuracy == 0.8


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_metrics_of_the_users_own_see_all_examples_at_once(batch_size: int) -> None:
    y = torch.tensor([0, 1, 1, 1, 0])
    module = nn.Linear(2, 2, bias=False)
    shard = Shard(Dataset("five", X, y, (), torch.arange(5), torch.arange(0)), torch.arange(5))
    model = Model.of(module, functional.cross_entropy, X, y)
    found = evaluate(torch.eye(2).flatten(), model, shard, batch_size, ("torch.nn.functional:cross_entropy",))
    assert found.own == {"cross_entropy": functional.cross_entropy(X, y).item()}
    assert set(found.figures) == {"accuracy", "loss", "cross_entropy"}


def test_what_is_no_number_is_no_figure() -> None:
    assert Evaluation(math.nan, None, 0, {"f1": math.inf}).figures == {}


def test_numbers_have_no_accuracy() -> None:
    loss, accuracy, _ = evaluated(torch.zeros(5), LOSSES["mse"], torch.tensor([[1.0, 0.0]]))
    assert (loss, accuracy) == (6.0, None)


def test_nothing_to_evaluate_on() -> None:
    y = torch.tensor([0, 1, 1, 1, 0])
    model = Model.of(nn.Linear(2, 2), functional.cross_entropy, X, y)
    empty = Shard(Dataset("five", X, y, (), torch.arange(5), torch.arange(0)), torch.arange(0))
    found = evaluate(model.initial, model, empty)
    assert math.isnan(found.loss)
    assert (found.accuracy, found.num_examples) == (None, 0)


def test_running_statistics_are_used_and_not_changed() -> None:
    model = Model.of(
        nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), functional.cross_entropy, X, torch.tensor([0, 1, 1, 1, 0])
    )
    params = model.initial.clone()
    shard = Shard(
        Dataset("five", X, torch.tensor([0, 1, 1, 1, 0]), (), torch.arange(5), torch.arange(0)), torch.arange(5)
    )
    assert evaluate(params, model, shard, 1) == evaluate(params, model, shard, 1)
    assert torch.equal(params, model.initial)
