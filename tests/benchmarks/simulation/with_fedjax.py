"""fedjax: `fedjax.algorithms.fed_avg` on its jit backend.

Each client is a data set that lists its batches in the round's order, read once and without shuffling. The models are
written in jax.numpy, and begin with the weights that torch has drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from fedjax.algorithms import fed_avg

from tests.benchmarks.simulation.workload import State, Work

Params = Mapping[str, Any]


def run(work: Work, done: Callable[[], None]) -> State:
    """As `hand.run`."""
    jax.tree_map = jax.tree_util.tree_map  # fedjax 0.0.17 looks for it where jax had it until 0.4.25
    scenario = work.scenario
    forward = _cnn if scenario.model == "cnn" else _mlp

    def loss(params: Params, batch: Mapping[str, Any], rng: Any) -> Any:
        logs = jax.nn.log_softmax(forward(params, batch["x"]))
        return -jnp.take_along_axis(logs, batch["y"][:, None], axis=1).mean()

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(scenario.lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=scenario.batch, num_epochs=1, skip_shuffle=True),
    )
    x, y, key = work.x.numpy(), work.y.numpy(), jax.random.PRNGKey(0)
    state = algorithm.init({name: jnp.asarray(weight.numpy()) for name, weight in work.initial.items()})
    for cohort in work.plan.flatten(2).numpy():
        clients = [
            (str(place).encode(), fedjax.ClientDataset({"x": x[rows], "y": y[rows]}), key)
            for place, rows in enumerate(cohort)
        ]
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        done()
    return {name: torch.from_numpy(np.array(weight)) for name, weight in state.params.items()}


def _mlp(params: Params, x: Any) -> Any:
    """Linear layers, with ReLU between them; weights and biases in turn."""
    x = x.reshape(len(x), -1)
    layers = sorted({name.rpartition(".")[0] for name in params}, key=lambda layer: int(layer.rpartition(".")[2]))
    for layer in layers:
        x = x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
        x = x if layer == layers[-1] else jax.nn.relu(x)
    return x


def _cnn(params: Params, x: Any) -> Any:
    for layer in ("0", "3"):
        weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
        x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME") + bias[:, None, None]
        x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return _mlp({name: weight for name, weight in params.items() if name.startswith("6.")}, x)
