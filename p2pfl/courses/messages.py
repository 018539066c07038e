"""The messages that courses with a coordinator share."""

from __future__ import annotations

import math

from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = ["Evaluate", "Finish", "Score", "Train", "Update", "number"]


class Update(Message):
    """The answer to Train: a model, and what it weighs."""

    params: Tensors
    num_examples: int
    loss: float | None  # over the examples seen in training; None if there were none


class Train(Request[Update]):
    """Train from this model on your examples. Rounds count from 0."""

    round: int
    params: Tensors


class Score(Message):
    loss: float | None
    accuracy: float | None
    num_examples: int


class Evaluate(Request[Score]):
    """Evaluate this model on your own held-out examples, or on all of yours if you hold none out."""

    params: Tensors


class Finish(Message):
    """The course is over, and this is its model."""

    rounds: int
    params: Tensors


def number(value: float | None) -> float | None:
    """JSON has no NaN: what is not a number is absent."""
    return value if value is not None and math.isfinite(value) else None
