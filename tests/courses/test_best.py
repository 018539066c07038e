import torch

from p2pfl.courses.best import Best


def one(value: float) -> torch.Tensor:
    return torch.tensor([value])


def test_the_best_is_by_accuracy_and_by_loss_where_there_is_none():
    best = Best(patience=0, target_accuracy=0.0)
    for value in (0.3, 0.7, 0.5):
        best.note(one(value), {"accuracy": value, "loss": 1.0})
    assert best.params is not None and best.params.equal(one(0.7))
    best = Best(patience=0, target_accuracy=0.0)
    for value in (0.3, 0.2, 0.5):
        best.note(one(value), {"client_loss": value})
    assert best.params is not None and best.params.equal(one(0.2))
    best.note(one(9.0), {"train_loss": 0.0})
    assert best.params.equal(one(0.2)), "what was not evaluated is not the best"


def test_it_is_over_once_the_target_is_reached_or_patience_is_at_an_end():
    best = Best(patience=2, target_accuracy=0.9)
    ends = []
    for accuracy in (0.5, 0.4, 0.5):
        best.note(one(accuracy), {"client_accuracy": accuracy})
        ends.append(best.ended({"client_accuracy": accuracy}))
    assert ends == [None, None, "2 evaluations brought nothing better"]
    assert best.ended({"accuracy": 0.95}) == "the accuracy 0.9500 has reached the target 0.9"


def test_what_it_has_seen_survives():
    best = Best(patience=2, target_accuracy=0.0)
    assert best.state() == {}
    for accuracy in (0.5, 0.4):
        best.note(one(accuracy), {"accuracy": accuracy})
    other = Best(patience=2, target_accuracy=0.0)
    other.resume(best.state())
    other.note(one(0.4), {"accuracy": 0.4})
    assert other.params is not None and other.params.equal(one(0.5))
    assert other.ended({}) is not None
