"""Hosts that have no torch: one trains by a few lines of numpy, one by scikit-learn where it is installed.

A coordinator with torch averages the models of two sites. Each site is a process `p2pfl client --fit FILE:FUNCTION`
with examples of its own, and loads neither torch nor anything else of p2pfl that needs it. The course is the one of
any other client: a model is sent, and what a site's function makes of it comes back.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import warnings
from asyncio.subprocess import PIPE, Process
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import p2pfl
from p2pfl.learn.files import read_npz
from p2pfl.learn.specs import TrainSpec

COURSE = """
[course]
name = "fedavg"
rounds = 12
[topology]
n = 3
[data]
source = "test.npz"
[partition]
scheme = "own"
[model]
name = "logistic"
[train]
lr = 0.5
epochs = 10
"""

HERE = Path(__file__).resolve()
Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@cache
def mine() -> tuple[Any, Any]:
    """This site's examples: whatever a function does to get them is its own affair."""
    arrays = read_npz(Path("mine.npz"))
    return arrays["x"], arrays["y"]


def by_hand(weights: Weights, spec: TrainSpec) -> tuple[Weights, int, float]:
    """Softmax regression. The names are those of torch's module on the coordinator: its layer number 1."""
    x, y = mine()
    weight, bias = weights["1.weight"], weights["1.bias"]
    for _ in range(spec.epochs):
        odds = np.exp(x @ weight.T + bias)
        shares = odds / odds.sum(1, keepdims=True)
        loss = -np.log(shares[np.arange(len(y)), y]).mean()
        error = (shares - np.eye(10)[y]) / len(y)
        weight -= spec.lr * error.T @ x
        bias -= spec.lr * error.sum(0)
    return weights, len(y), float(loss)


def by_scikit_learn(weights: Weights, spec: TrainSpec) -> tuple[Weights, int, float]:
    """A few steps of L-BFGS from the model that was sent."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - only one of the sites has it

    x, y = mine()
    model = LogisticRegression(warm_start=True, max_iter=spec.epochs, C=10)
    model.coef_, model.intercept_ = weights["1.weight"].astype(float), weights["1.bias"].astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged, and is not meant to
        model.fit(x, y)
    loss = -model.predict_log_proba(x)[np.arange(len(y)), y].mean()
    return {"1.weight": model.coef_, "1.bias": model.intercept_}, len(y), float(loss)


def write_examples(folder: Path) -> None:
    """Images of digits: the coordinator has those for testing, each site a third of the others."""
    digits = read_npz(Path(p2pfl.__file__).with_name("learn") / "digits.npz")
    x, y = (digits["x"] / 16).astype(np.float32), digits["y"]
    np.savez(folder / "test.npz", x=x[:20], y=y[:20], x_test=x[1200:], y_test=y[1200:])
    for site in (1, 2):
        (folder / str(site)).mkdir()
        np.savez(folder / str(site) / "mine.npz", x=x[20 + site : 1200 : 3], y=y[20 + site : 1200 : 3])


async def command(folder: Path, *options: str) -> Process:
    program = (sys.executable, "-m", "p2pfl", *options, "--json")
    return await asyncio.create_subprocess_exec(*program, stdout=PIPE, cwd=folder)


async def main(folder: Path) -> None:
    write_examples(folder)
    (folder / "course.toml").write_text(COURSE)
    second = "by_scikit_learn" if importlib.util.find_spec("sklearn") else "by_hand"
    hub = await command(folder, "node", "--course", "course.toml", "--listen", ":0")
    assert hub.stdout is not None
    address = json.loads(await hub.stdout.readline())["addresses"][0]
    sites = []
    for site, function in ((1, "by_hand"), (2, second)):
        print(f"site {site}: p2pfl client --peers {address} --fit without_torch.py:{function}")
        options = ("--peers", address, "--fit", f"{HERE}:{function}")
        sites.append(await command(folder / str(site), "client", *options))
    async for line in hub.stdout:
        row = json.loads(line)
        if row["kind"] == "round":
            print(f"round {row['round']:2}  accuracy {row['metrics']['accuracy']:.3f}")
    for process in (hub, *sites):
        await process.communicate()


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
