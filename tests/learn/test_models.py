"""The shelf of models: published parameter counts, and shapes."""

import pytest
import torch

from p2pfl.errors import ConfigError
from p2pfl.learn.models import MODELS, CharLSTM, cnn, logistic, mlp
from p2pfl.learn.params import Layout


def test_the_cnn_of_the_fedavg_paper() -> None:
    assert Layout.of(cnn((1, 28, 28), 62)).numel == 1_690_046
    assert Layout.of(cnn((1, 28, 28), 10)).numel == 1_663_370  # "1,663,370 total parameters", McMahan et al., section 3


def test_the_shakespeare_model_of_leaf() -> None:
    model = CharLSTM(outputs=80)
    assert Layout.of(model).numel == 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + 257 * 80
    assert model(torch.randint(0, 80, (3, 80))).shape == (3, 80)


def test_the_small_ones() -> None:
    assert Layout.of(logistic((64,), 10)).numel == 650
    assert Layout.of(mlp((1, 8, 8), 10)).numel == 64 * 32 + 32 + 32 * 10 + 10
    assert Layout.of(mlp((64,), 10, hidden=(128,))).numel == 9_610
    assert mlp((1, 8, 8), 10, hidden=(5, 6))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert cnn((3, 9, 13), 4, hidden=(5,))(torch.zeros(2, 3, 9, 13)).shape == (2, 4)


def test_models_that_do_not_fit_their_data() -> None:
    with pytest.raises(ConfigError, match="cnn takes images"):
        cnn((64,), 10)
    with pytest.raises(ConfigError, match="layers of one width"):
        CharLSTM(80, hidden=(256, 128))


def test_every_name_of_the_shelf() -> None:
    assert sorted(MODELS) == ["char-lstm", "cnn", "logistic", "mlp"]
