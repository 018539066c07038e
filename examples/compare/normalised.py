"""A model with batch normalisation, for fedbn.toml."""

import math
from collections.abc import Sequence

from torch import nn


class Normalised(nn.Sequential):
    """Two linear layers, and a normalisation over batches between them."""

    def __init__(self, input_shape: Sequence[int], outputs: int) -> None:
        first = nn.Linear(math.prod(input_shape), 32)
        super().__init__(nn.Flatten(), first, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, outputs))
