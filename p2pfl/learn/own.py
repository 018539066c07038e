"""Local training by a function of the user's own, which `train.function` names.

It is called with those of these that it has parameters for, by name:

    params  (layout.numel,) float32, its own to write to     shard   the client's examples
    model   a p2pfl.learn.model.Model                        spec    the table [train]
    seed    rules all that it draws                          round   from 0
    drift   added to every gradient, for courses that correct drift; None if there is none
    weights the same memory as params, as numpy arrays by name       x, y    the examples as numpy arrays

It gives a FitResult; or the trained vector (or its arrays by name), the number of examples and the mean loss. In full:

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

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.learn.arrays import ArrayLayout
from p2pfl.learn.batches import Work
from p2pfl.learn.lookup import load_callable, taken
from p2pfl.learn.memory import duplicate
from p2pfl.learn.train import Fit, FitResult

__all__ = ["fit_by_own", "own_function"]

_OFFERED = ("params", "model", "shard", "spec", "seed", "round", "drift", "weights", "x", "y")


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
    vector = duplicate(work.params)
    found = function(**{name: value for name, value in _offered(work, vector, names).items() if name in names})
    if not isinstance(found, FitResult):
        found = _result(path, found, work, vector)
    params = found.params
    if params.shape != work.params.shape or params.dtype != torch.float32:
        raise ConfigError(
            f"train.function {path!r} gives no float32 vector of shape {tuple(work.params.shape)}; return the params"
        )
    return FitResult(params.detach(), found.num_examples, found.loss, found.steps)


def _offered(work: Fit, vector: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """What a function can have. Arrays of examples are only made for who takes them."""
    offered = {name: getattr(work, name) for name in ("model", "shard", "spec", "seed", "round", "drift")}
    offered |= {"params": vector, "weights": _arrays(work).views(vector.numpy())}
    if "x" in names or "y" in names:
        shard = work.shard.shifted()
        x, y = shard.dataset.batch(shard.indices)
        offered |= {"x": x.numpy(), "y": y.numpy()}
    return offered


def _arrays(work: Fit) -> ArrayLayout:
    return ArrayLayout(work.model.layout.schema)


def _result(path: str, found: Any, work: Fit, vector: Tensor) -> FitResult:
    steps = Work.of(len(work.shard), work.spec).steps
    match found:
        case (Mapping() | np.ndarray() as trained, num_examples, loss) if operator.index(num_examples) >= 0:
            _arrays(work).write(vector.numpy(), trained)
            return FitResult(vector, operator.index(num_examples), float(loss), steps)
        case (Tensor() as params, int(num_examples), int() | float() | Tensor() as loss) if num_examples >= 0:
            return FitResult(params, num_examples, float(loss), steps)
    raise ConfigError(
        f"train.function {path!r} gives a {type(found).__name__}; return (params, num_examples, loss) or a FitResult"
    )
