"""What is better, what is reached, and what is not measured at all."""

import doctest

import pytest

from p2pfl.courses import goal
from p2pfl.courses.goal import Goal
from p2pfl.errors import ConfigError


def test_examples():
    assert doctest.testmod(goal).failed == 0


def test_usually_accuracy_goes_before_loss_and_the_servers_before_that_of_clients():
    assert Goal().merit({"loss": 1.0, "client_accuracy": 0.5, "client_loss": 2.0}) == 0.5
    assert Goal().merit({"accuracy": 0.25, "client_accuracy": 0.5}) == 0.25
    assert Goal().merit({"train_loss": 1.0}) is None


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
