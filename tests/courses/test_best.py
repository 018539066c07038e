"""What is the best, and when it is over."""

import doctest

import pytest
import torch

from p2pfl.courses import best
from p2pfl.courses.best import Best, Goal
from p2pfl.errors import ConfigError

MODELS = [torch.tensor([float(number)]) for number in range(5)]


def test_examples():
    assert doctest.testmod(best).failed == 0


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


def test_usually_accuracy_goes_before_loss_and_the_servers_before_that_of_clients():
    assert Goal().merit({"loss": 1.0, "client_accuracy": 0.5, "client_loss": 2.0}) == 0.5
    assert Goal().merit({"accuracy": 0.25, "client_accuracy": 0.5}) == 0.25
    assert Goal().merit({"train_loss": 1.0}) is None


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


def test_a_target_is_reached_from_below_or_from_above():
    higher, lower = Goal("f1", target=0.8), Goal("loss", target=0.8)
    assert higher.reached({"f1": 0.7}) is None is lower.reached({"loss": 0.9})
    assert higher.reached({"f1": 0.8}) == "f1 0.8000 has reached the target 0.8"
    assert lower.reached({"loss": 0.5}) == "loss 0.5000 has reached the target 0.8"
    assert Goal("f1").reached({"f1": 0.0}) is None


def test_a_metric_that_is_not_measured_is_refused():
    with pytest.raises(ConfigError, match=r"course\.best_by is 'f2', which is not measured; take one of f1, loss"):
        Goal("f2").check({"f1": 0.5, "loss": 1.0})
    Goal("client_f1").check({"f1": 0.5})  # no client has answered
    with pytest.raises(ConfigError, match="client_f2"):
        Goal("client_f2").check({"client_f1": 0.5})
