"""Metrics of the user's own, which `metrics.own` names.

A metric is a function of (outputs, targets), the model's outputs for all examples of one evaluation and what they
should have been, that gives a number:

    def f1(outputs, targets):
        said = outputs.argmax(dim=1) == 1
        true = targets == 1
        return float(2 * (said & true).sum() / (said.sum() + true.sum()))

It stands in the metrics by its name, here as `f1`, and as `client_f1` where clients evaluate. What is not finite is
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.lookup import load_callable
from p2pfl.learn.specs import metric_name

__all__ = ["measure", "own_metric"]


@lru_cache(maxsize=32)  # a file is run once, and not for every evaluation
def own_metric(path: str) -> Callable[..., Any]:
    """What `metrics.own` names. Raises ConfigError for what cannot be had or called."""
    return load_callable("metrics.own", path)


def measure(paths: Sequence[str], outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
    """Each metric by its name. Outputs have shape (examples, ...).

    Raises ComputeError if a function fails, ConfigError if it gives no number.
    """
    return {metric_name(path): _number(path, outputs, targets) for path in paths}


def _number(path: str, outputs: Tensor, targets: Tensor) -> float:
    try:
        value = own_metric(path)(outputs, targets)
    except ConfigError:
        raise
    except Exception as error:  # a function of the user's own may raise anything
        raise ComputeError(f"metrics.own {path!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metrics.own {path!r} gives a {type(value).__name__}; it must give a number") from error
