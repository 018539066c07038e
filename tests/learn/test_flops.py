"""Operations, counted by hand and by torch's own counter."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from p2pfl.learn.data import Dataset, load_dataset
from p2pfl.learn.flops import _Counter, training_flops
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.specs import DataSpec, ModelSpec

DIGITS = load_dataset(DataSpec(subsample=0.1), 0)


def test_a_linear_layer_by_hand() -> None:
    """Forward a product of (b, 64) and (64, 10), backward one for the weights; nobody needs the inputs' gradient."""
    assert training_flops(build_model(ModelSpec("logistic"), DIGITS, 0), DIGITS, 8) == 2 * 2 * 64 * 10


def test_two_layers_by_hand() -> None:
    model = build_model(ModelSpec("mlp", hidden=(32,)), DIGITS, 0)
    assert training_flops(model, DIGITS, 8) == 2 * (2 * 64 * 32 + 3 * 32 * 10)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("batch", [3, 16])
def test_it_is_what_torch_counts(name: str, batch: int) -> None:
    model = build_model(ModelSpec(name), DIGITS, 0)
    x, y = DIGITS.batch(DIGITS.train_indices[:batch])
    with model.using(model.initial.clone(), training=True), FlopCounterMode(display=False) as counter:
        model.loss(model.module(x), y).backward()
    for weight in model.module.parameters():
        weight.grad = None
    assert training_flops(model, DIGITS, batch) == counter.get_total_flops() / batch


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_an_lstm_by_hand() -> None:
    x, y = torch.randn(4, 7, 3), torch.tensor([0, 1, 0, 1])
    data = Dataset("four", x, y, ("a", "b"), torch.arange(4), torch.arange(0))
    model = Model.of(Reader(), functional.cross_entropy, x, y)
    gates = 7 * (3 * 20 + 5 * 20)
    assert training_flops(model, data, 4) == pytest.approx(3 * 2 * gates + 3 * 2 * 5 * 2)


def test_the_model_is_as_before() -> None:
    model = build_model(ModelSpec("cnn"), DIGITS, 0)
    before = model.initial.clone()
    training_flops(model, DIGITS, 4)
    assert torch.equal(model.initial, before)
    assert all(weight.grad is None for weight in model.module.parameters())


def test_it_does_not_load_a_compiler() -> None:
    """Torch wraps a dispatch mode for its compiler, and loads that the first time it is entered."""
    assert hasattr(_FlopCounterMode.__torch_dispatch__, "__wrapped__")
    assert not hasattr(_Counter.__torch_dispatch__, "__wrapped__")
