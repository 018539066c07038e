"""The models that a course file can name.

Each is a plain module built from keyword parameters; `input_shape` (one example, without the batch) and `outputs`
are read off the data set. All end in logits, or in plain numbers for regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from p2pfl.errors import ConfigError

__all__ = ["MODELS", "CharLSTM", "cnn", "logistic", "mlp"]


def logistic(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """Multinomial logistic regression; for regression, a linear model."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs))


def mlp(input_shape: Sequence[int], outputs: int, hidden: Sequence[int] = (32,)) -> nn.Module:
    """Linear layers of the `hidden` widths, with ReLU between them."""
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def cnn(input_shape: Sequence[int], outputs: int, hidden: Sequence[int] = (512,)) -> nn.Module:
    """The convolutional network of McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629: 1,690,046 parameters for 62 classes of 28 x 28.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ConfigError(
            f"model cnn takes images (channels, height, width) of 4 x 4 or more, not {input_shape}; use mlp"
        )
    channels, height, width = input_shape
    features = 64 * (height // 4) * (width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        mlp((features,), outputs, hidden),
    )


class CharLSTM(nn.Module):
    """Next-character model of LEAF (Caldas et al., 2018, https://arxiv.org/abs/1812.01097): an embedding of 8, two
    LSTM layers of 256, and a linear layer on the last state. Takes (batch, window) character codes.
    """

    def __init__(self, outputs: int, embedding: int = 8, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        if len(set(hidden)) != 1:
            raise ConfigError(
                f"model.hidden is {list(hidden)}; char-lstm needs layers of one width, such as [256, 256]"
            )
        self.embedding = nn.Embedding(outputs, embedding)
        self.lstm = nn.LSTM(embedding, hidden[0], num_layers=len(hidden), batch_first=True)
        self.output = nn.Linear(hidden[0], outputs)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (batch, characters) of the character after the window."""
        states, _ = self.lstm(self.embedding(codes))
        logits: Tensor = self.output(states[:, -1])
        return logits


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "logistic": logistic,
    "mlp": mlp,
    "cnn": cnn,
    "char-lstm": CharLSTM,
}
