"""The messages that courses with a coordinator share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors

__all__ = ["MODEL", "Evaluate", "Finish", "Finished", "Rating", "Score", "Train", "Update", "number"]

MODEL = "params"  # what a model's vector is called among the tensors of a message


class Update(Message):
    """The answer to Train: a model, and what it weighs."""

    round: int
    params: Tensors
    num_examples: int
    loss: float | None  # over the examples seen in training; None if there were none

    def __post_init__(self) -> None:
        _check_count(self.num_examples)


class Train(Request[Update]):
    """Train from this model on your examples. Rounds count from 0."""

    round: int
    params: Tensors


@dataclass(frozen=True, slots=True)
class Rating:
    """How a client finds a model: means over so many examples, by the names of the metrics."""

    metrics: dict[str, float]
    num_examples: int

    def __post_init__(self) -> None:
        _check_count(self.num_examples)


class Score(Message):
    """The answer to Evaluate: a rating; and those of each client by its seat, where the sender speaks for several."""

    rating: Rating
    clients: dict[str, Rating]

    def __post_init__(self) -> None:
        odd = next((seat for seat in self.clients if not seat.isdecimal()), None)
        if odd is not None:
            raise ValueError(f"{odd!r} is no seat")


class Evaluate(Request[Score]):
    """Evaluate this model on your own held-out examples, or on all of yours if you hold none out."""

    round: int
    params: Tensors
    each: bool  # who speaks for several clients is to say what each has found


class Finished(Message):
    """The model was taken."""


class Finish(Request[Finished]):
    """The course is over, and this is its model."""

    rounds: int
    params: Tensors


def _check_count(num_examples: int) -> None:
    if num_examples < 0:
        raise ValueError(f"num_examples is {num_examples}; it must not be negative")


def number(value: float | None) -> float | None:
    """JSON has no NaN: what is not a number is absent."""
    return value if value is not None and math.isfinite(value) else None
