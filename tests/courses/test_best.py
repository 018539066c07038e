"""The best of several models."""

import pytest
import torch

from p2pfl.courses.best import Best
from p2pfl.courses.goal import Goal

MODELS = [torch.tensor([float(number)]) for number in range(5)]


def kept(goal, name, values):
    """Of models with these values of a metric, which one is the best."""
    found = Best(goal)
    for params, value in zip(MODELS, values, strict=False):
        found.note(params, {name: value})
    return int(found.params)


@pytest.mark.parametrize(
    ("goal", "name", "expected"),
    [
        (Goal(), "accuracy", 2), (Goal(), "client_accuracy", 2), (Goal(), "loss", 1), (Goal(), "client_loss", 1),
        (Goal("f1"), "f1", 2), (Goal("client_accuracy_std", "lowest"), "client_accuracy_std", 1),
        (Goal("train_loss"), "train_loss", 1), (Goal("my_loss", "highest"), "my_loss", 2),
    ],
)  # fmt: skip
def test_any_metric_can_be_judged_by(goal, name, expected):
    assert kept(goal, name, [0.5, 0.1, 0.9, 0.9, 0.3]) == expected


def test_rounds_without_an_evaluation_cost_no_patience():
    found = Best(Goal("f1", patience=2))
    for metrics in ({"f1": 0.5}, {}, {"accuracy": 1.0}, {"f1": 0.5}):
        found.note(MODELS[0], metrics)
    assert found.ended({}) is None
    found.note(MODELS[1], {"f1": 0.4})
    assert found.ended({}) == "2 evaluations brought nothing better"
    again = Best(Goal("f1", patience=2))
    again.resume(found.state())
    assert again.ended({}) == found.ended({}) and torch.equal(again.params, found.params)
