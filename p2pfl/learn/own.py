"""Local training by a function of the user's own, which `train.function` names.

It is called with those of these that it has parameters for, by name:

    params  (layout.numel,) float32, its own to write to     shard   the client's examples
    model   a p2pfl.learn.model.Model                        spec    the table [train]
    seed    rules all that it draws                          round   from 0
    drift   added to every gradient, for courses that correct drift; None if there is none

It gives a FitResult, or the trained vector, the number of examples and the mean loss. In full:

    def fit(params, model, shard, spec, seed):
        losses = []
        with model.using(params, training=True, seed=seed) as weights:
            optimizer = torch.optim.RMSprop(weights, lr=spec.lr)
            for x, y in batches(shard, spec, seed):
                loss = model.loss(model.module(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return params, len(shard), sum(losses) / len(losses)

Equal arguments have to give equal bytes, or a run cannot be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.learn.batches import Work
from p2pfl.learn.lookup import load_callable, taken
from p2pfl.learn.memory import duplicate
from p2pfl.learn.train import Fit, FitResult

__all__ = ["fit_by_own", "own_function"]

_OFFERED = ("params", "model", "shard", "spec", "seed", "round", "drift")


@lru_cache(maxsize=32)  # a file is run once, and not for every client
def own_function(path: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """What `train.function` names, and what it takes. Raises ConfigError for what cannot be had or called."""
    function = load_callable("train.function", path)
    return function, taken(f"train.function {path!r}", function, _OFFERED)


def fit_by_own(work: Fit) -> FitResult:
    """Train a client by the function of its spec. Without a step count from it, `steps` is what the spec asks for.

    Raises ConfigError if it gives something else than it has to, and whatever it raises.
    """
    path = work.spec.function
    function, names = own_function(path)
    if work.drift is not None and "drift" not in names:
        raise ConfigError(f"train.function {path!r} does not take drift, which this course needs; add it to gradients")
    if work.memory is not None:
        raise ConfigError(
            f"train.function {path!r} trains in its own way, and what its optimizer remembers is not carried on; set "
            "course.carry to false"
        )
    offered = {name: getattr(work, name) for name in names} | (
        {"params": duplicate(work.params)} if "params" in names else {}
    )
    found = function(**offered)
    if not isinstance(found, FitResult):
        found = _result(path, found, Work.of(len(work.shard), work.spec).steps)
    params = found.params
    if params.shape != work.params.shape or params.dtype != torch.float32:
        raise ConfigError(
            f"train.function {path!r} gives no float32 vector of shape {tuple(work.params.shape)}; return the params"
        )
    return FitResult(params.detach(), found.num_examples, found.loss, found.steps)


def _result(path: str, found: object, steps: int) -> FitResult:
    match found:
        case (Tensor() as params, int(num_examples), int() | float() | Tensor() as loss) if num_examples >= 0:
            return FitResult(params, num_examples, float(loss), steps)
    raise ConfigError(
        f"train.function {path!r} gives a {type(found).__name__}; return (params, num_examples, loss) or a FitResult"
    )
