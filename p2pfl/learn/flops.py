"""How many floating-point operations training takes, counted once for a model, by torch's own formulas.

As with `torch.utils.flop_counter.FlopCounterMode`, matrix products, convolutions and attention count, each
multiplication and each addition as one; what goes element by element does not. Unlike it, this loads no compiler, which
would take seconds, and knows oneDNN's LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from p2pfl.learn.data import Dataset
from p2pfl.learn.model import Model

__all__ = ["training_flops"]


def training_flops(model: Model, dataset: Dataset, batch_size: int) -> float:
    """Of one example, once forward and backward, as its share of a batch: of `batch_size` of the training part, and two
    at least.

    How the examples are really computed, many clients at once or one by one, makes no difference to it. Raises whatever
    the model and its loss raise.
    """
    x, y = dataset.batch(dataset.train_indices[: max(2, batch_size)])
    with model.using(model.initial.clone(), training=True) as weights, _Counter() as counter:
        torch.autograd.grad(model.loss(model.module(x), y), weights, allow_unused=True)
    return float(counter.total) / len(y)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here, nor below
    """Adds up what is computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, to have it pass us over. Nobody compiles what we count."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        out = func(*args, **named)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **named, out_val=out)
        elif packet is torch.ops.aten.mkldnn_rnn_layer:
            self.total += _lstm(args)
        elif packet is torch.ops.aten.mkldnn_rnn_layer_backward:
            self.total += 2 * _lstm(args)
        return out


def _lstm(args: Sequence[Any]) -> int:
    """Of one pass: at each step of each sequence, what came and the state before, each times its weights."""
    x, of_input, of_state = args[:3]  # x: (steps, sequences, features)
    return int(2 * x.shape[0] * x.shape[1] * (of_input.numel() + of_state.numel()))
