"""Training by a function of the user's own: what it is given, what it may give, and mistakes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.model import build_model
from p2pfl.learn.own import fit_by_own, own_function
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import DataSpec, ModelSpec, TrainSpec
from p2pfl.learn.tiers import Tier, fit_all, tier_of
from p2pfl.learn.train import Fit, fit_plainly

WHOLE = """
import numpy as np
import torch
from p2pfl.learn.batches import batches
from p2pfl.learn.train import Fit, FitResult, fit_plainly

def sgd(params, model, shard, spec, seed):
    losses = []
    with model.using(params, training=True, seed=seed) as weights:
        optimizer = torch.optim.SGD(weights, lr=spec.lr)
        for x, y in batches(shard, spec, seed):
            loss = model.loss(model.module(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(y))
    return params, len(shard), sum(losses) / sum(len(y) for _, y in batches(shard, spec, seed))

def plain(params, model, shard, spec, seed, round, drift):
    return fit_plainly(Fit(params, model, shard, spec, seed, round, drift))

def one_more(params, round, scale=2.0):
    return params.add_(scale * (round + 1)), 5, 0.25

def numpy_softmax(weights, spec, x=None, y=None):
    w, b = weights["1.weight"], weights["1.bias"]
    x = x.reshape(len(x), -1)
    for _ in range(spec.epochs):
        odds = np.exp(x @ w.T + b)
        error = (odds / odds.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
        weights = {"1.weight": w - spec.lr * error.T @ x, "1.bias": b - spec.lr * error.sum(0)}
        w, b = weights["1.weight"], weights["1.bias"]
    return weights, np.int64(len(y)), np.float32(0.5)

def narrow(weights):
    return {"1.weight": weights["1.weight"]}, 1, 0.0

def nothing(params):
    return None

def short(params):
    return params[:-1], 1, 0.0

def double(params):
    return params.double(), 1, 0.0

def negative(params):
    return params, -1, 0.0

def failing(params):
    raise RuntimeError("no luck")

def greedy(params, device):
    return params, 1, 0.0

class Positional:
    def __call__(self, params, /):
        return params, 1, 0.0

positional = Positional()
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSpec(), seed=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own") / "my_train.py"
    file.write_text(WHOLE)
    return file


def work(digits: Dataset, path: Path, name: str, round: int = 0, drift: torch.Tensor | None = None) -> Fit:
    model = build_model(ModelSpec(), digits, 0)
    spec = TrainSpec(epochs=2, batch_size=10, function=f"{path}:{name}")
    return Fit(model.initial, model, Shard(digits, digits.train_indices[:47]), spec, 3, round, drift)


@pytest.mark.parametrize("name", ["sgd", "plain"])
def test_it_trains_in_place_of_ours(digits: Dataset, path: Path, name: str) -> None:
    fit = work(digits, path, name)
    (found,) = fit_all([fit])
    ours = fit_plainly(fit)
    assert torch.equal(found.params, ours.params)
    assert (found.num_examples, found.steps) == (47, 10)
    assert found.loss == pytest.approx(ours.loss, rel=1e-5)


def test_it_gets_what_it_asks_for_and_writes_to_a_copy(digits: Dataset, path: Path) -> None:
    fit = work(digits, path, "one_more", round=2)
    before = fit.params.clone()
    found = fit_by_own(fit)
    assert torch.equal(found.params, before + 6)
    assert torch.equal(fit.params, before)
    assert (found.num_examples, found.loss) == (5, 0.25)


def test_drift_goes_to_who_takes_it(digits: Dataset, path: Path) -> None:
    drift = torch.linspace(-1, 1, work(digits, path, "plain").params.numel())
    fit = work(digits, path, "plain", drift=drift)
    assert torch.equal(fit_by_own(fit).params, fit_plainly(fit).params)
    with pytest.raises(ConfigError, match=r"sgd' does not take drift, which this course needs; add it to gradients"):
        fit_by_own(work(digits, path, "sgd", drift=drift))


def test_its_file_is_run_once(path: Path) -> None:
    assert own_function(f"{path}:sgd")[0] is own_function(f"{path}:sgd")[0]


def test_the_tier_says_so(digits: Dataset, path: Path) -> None:
    fit = work(digits, path, "sgd")
    assert tier_of(fit.model, fit.spec) == Tier("own", f"train.function is {path}:sgd")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", r"nothing' gives a NoneType; return \(params, num_examples, loss\) or a FitResult"),
        ("negative", r"negative' gives a tuple; return"),
        ("narrow", r"the training function gives 1.weight; return 1.weight, 1.bias, 3.weight, 3.bias"),
        ("short", r"short' gives no float32 vector of shape \(2410,\); return the params"),
        ("double", r"double' gives no float32 vector"),
        ("greedy", r"greedy' takes 'device', which it is not given; it can have params, model, shard, spec, seed"),
        ("positional", r"takes 'params', which it is not given"),
        ("absent", r"has no class or function 'absent'"),
    ],
)
def test_mistakes_are_named(digits: Dataset, path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit_by_own(work(digits, path, name))


def test_mistakes_of_the_signature_are_found_before_training(digits: Dataset, path: Path) -> None:
    fit = work(digits, path, "greedy")
    with pytest.raises(ConfigError, match="takes 'device'"):
        tier_of(fit.model, fit.spec)


def test_what_it_raises_is_raised(digits: Dataset, path: Path) -> None:
    (found,) = fit_all([work(digits, path, "failing")])
    assert isinstance(found, RuntimeError)


def test_a_function_over_numpy_arrays_is_given_examples_and_weights_by_name(digits: Dataset, path: Path) -> None:
    """The same one that a host without torch would have, with its derivative by hand."""
    model = build_model(ModelSpec("logistic"), digits, 0)
    shard = Shard(digits, digits.train_indices[:40], Shift("scale", 1.5))
    by_torch = TrainSpec(epochs=3, batch_size=40, lr=0.2)
    by_numpy = replace(by_torch, function=f"{path}:numpy_softmax")
    found = fit_by_own(Fit(model.initial, model, shard, by_numpy, 0, 0, None))
    expected = fit_plainly(Fit(model.initial, model, shard, by_torch, 0, 0, None))
    torch.testing.assert_close(found.params, expected.params, atol=1e-6, rtol=0)
    assert (found.num_examples, found.loss, found.steps) == (40, 0.5, 3)
