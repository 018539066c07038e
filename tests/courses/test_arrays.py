"""Clients that train over numpy arrays: what they are given, what they may give, and that nobody can tell."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from p2pfl.courses.arrays import ArrayTrainer
from p2pfl.courses.course import Course
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedopt import FEDOPT, FedOptSettings
from p2pfl.courses.fedswa import FEDSWA, FedSwaSettings
from p2pfl.courses.messages import MODEL, Evaluate, Finish, Rating, Train
from p2pfl.courses.seeds import seed_of
from p2pfl.errors import ComputeError, ConfigError, RemoteError
from p2pfl.learn.arrays import ArrayLayout
from p2pfl.learn.specs import ModelSpec, PartitionSpec, TrainSpec
from p2pfl.link.memory import MemoryNetwork
from p2pfl.topology.families import build
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.courses.kit import Played
from tests.node.kit import QUIET, make

Floats = npt.NDArray[np.float32]
Weights = dict[str, Floats]

TINY = ArrayLayout.of({"w": (2, 2), "b": (2,)})


def mlp_by_hand(x: Floats, y: npt.NDArray[np.int64]) -> Callable[..., Any]:
    """Full-batch gradient descent on one hidden layer of ReLUs and a softmax, with the derivatives written out."""

    def fit(weights: Weights, spec: TrainSpec) -> tuple[Weights, int, float]:
        w1, b1, w2, b2 = weights.values()
        losses = []
        for _ in range(spec.epochs):
            hidden = np.maximum(x @ w1.T + b1, 0)
            logits = hidden @ w2.T + b2
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            losses.append(-np.log(shares[np.arange(len(y)), y]).mean())
            error = (shares - np.eye(10, dtype=np.float32)[y]) / len(y)
            back = (error @ w2) * (hidden > 0)
            for weight, gradient in ((w1, back.T @ x), (b1, back.sum(0)), (w2, error.T @ hidden), (b2, error.sum(0))):
                weight -= spec.lr * gradient
        return weights, len(y), float(np.mean(losses))

    return fit


@pytest.mark.parametrize(
    ("course", "settings"),
    [
        (FEDAVG, FedAvgSettings(rounds=4, evaluate="both")),
        (FEDOPT, FedOptSettings(rounds=4, evaluate="none")),
        (FEDSWA, FedSwaSettings(rounds=4, evaluate="none")),
    ],
    ids=lambda each: each.name if isinstance(each, Course) else "",
)
def test_one_numpy_client_among_three_with_torch_changes_nothing(course: Course, settings: FedAvgSettings) -> None:
    """An MLP with its derivatives written by hand, in the place of a client with torch."""
    world: dict[str, Any] = {
        "model_spec": ModelSpec("mlp", hidden=(16,)),
        "train": TrainSpec(lr=0.3, batch_size=1000, epochs=3),
        "split": PartitionSpec("dirichlet", alpha=1.0, min_examples=4),
    }
    usual = Played(course, settings, build("star", n=5), **world).play()

    def recast(seat: int, roles: tuple[object, ...]) -> tuple[object, ...]:
        if seat != 4:
            return roles
        x, y = usual.data.batch(usual.shards[4].indices)
        fit = mlp_by_hand(x.flatten(1).numpy(), y.numpy())
        return (ArrayTrainer(fit, ArrayLayout(usual.model.layout.schema), usual.train),)

    mixed = Played(course, settings, build("star", n=5), recast=recast, **world).play()
    torch.testing.assert_close(mixed.params[0], usual.params[0], atol=1e-6, rtol=0)
    moved = (usual.params[0] - usual.model.initial).abs().max()
    assert moved > 0.01
    (client,) = mixed.world.seats[4].roles
    assert isinstance(client, ArrayTrainer)
    assert client.params is not None
    assert np.array_equal(client.params, mixed.params[0].numpy()), "it ends with the course's model"


class Site:
    """A hub in seat 0, and a client in seat 3."""

    def __init__(self, fit: Callable[..., Any], **more: Any) -> None:
        self.network = MemoryNetwork()
        self.trainer = ArrayTrainer(fit, TINY, TrainSpec(lr=0.5), seed=7, **more)
        self.hub = make(self.network, "hub", listen="hub", seat=0, settings=QUIET)
        self.node = make(self.network, "client", self.trainer, peers=["hub"], seat=3, settings=QUIET)

    async def __aenter__(self) -> Site:
        await self.hub.__aenter__()
        await self.node.__aenter__()
        self.running = asyncio.create_task(self.node.run())
        await self.hub.meet([3])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.node.__aexit__(None, None, None)
        await self.hub.__aexit__(None, None, None)

    async def ask(self, ask: Any) -> Any:
        (peer,) = self.hub.peers
        return await peer.ask(ask)


def tensors(vector: object) -> Tensors:
    array = np.asarray(vector, np.float32)
    return Tensors((TensorSpec(MODEL, "f32", array.shape),), (array.data,))


MODEL_SENT = tensors(np.arange(6))


async def test_a_function_is_given_what_it_takes() -> None:
    given: dict[str, Any] = {}

    def fit(weights: Weights, params: Floats, spec: TrainSpec, seed: int, round: int, seat: int) -> Any:
        given.update(shapes={name: array.shape for name, array in weights.items()}, spec=spec, seed=seed, seat=seat)
        weights["w"] += 1
        return params, 5, 0.25

    async with Site(fit) as site:
        update = await site.ask(Train(2, MODEL_SENT))
    assert given["shapes"] == TINY.shapes
    assert given["spec"] == TrainSpec(lr=0.5)
    assert (given["seed"], given["seat"]) == (seed_of(7, "fit", 2, 3), 3)
    assert (update.round, update.num_examples, update.loss) == (2, 5, 0.25)
    assert np.frombuffer(update.params[MODEL], "<f4").tolist() == [1, 2, 3, 4, 4, 5]
    assert np.frombuffer(MODEL_SENT[MODEL], "<f4").tolist() == [0, 1, 2, 3, 4, 5], "what was sent is not written to"


async def test_arrays_of_other_types_are_taken_by_value() -> None:
    mine: Mapping[str, Any] = {"b": [0.5, 0.25], "w": np.arange(4.0).reshape(2, 2).T}
    async with Site(lambda: (mine, np.int64(3), np.float32("nan"))) as site:
        update = await site.ask(Train(0, MODEL_SENT))
    assert np.frombuffer(update.params[MODEL], "<f4").tolist() == [0, 2, 1, 3, 0.5, 0.25]
    assert (update.num_examples, update.loss) == (3, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "gives a NoneType; return (weights, num_examples, loss)"),
        (({"w": np.zeros((2, 2))}, 1, 0.0), "gives w; return w, b"),
        (({"w": np.zeros(4), "b": np.zeros(2)}, 1, 0.0), "gives 'w' of shape (4,); it must be (2, 2)"),
        ((np.zeros(5), 1, 0.0), "gives 'params' of shape (5,); it must be (6,)"),
    ],
)
async def test_what_it_may_not_give(given: object, said: str) -> None:
    async with Site(lambda: given) as site:
        with pytest.raises(RemoteError) as caught:
            await site.ask(Train(0, MODEL_SENT))
    assert f"ConfigError: the training function {said}" in str(caught.value)


async def test_training_that_fails_is_tried_again_when_it_is_asked_for_again() -> None:
    tries: list[int] = []

    def fit(params: Floats) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return params, 1, 0.0

    async with Site(fit) as site:
        with pytest.raises(RemoteError, match=f"{ComputeError.__name__}: local training failed: MemoryError"):
            await site.ask(Train(0, MODEL_SENT))
        assert (await site.ask(Train(0, MODEL_SENT))).num_examples == 1


async def test_an_update_whose_answer_was_lost_is_not_made_twice() -> None:
    tries, gate = list[int](), threading.Event()
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def fit(params: Floats, round: int) -> Any:
        tries.append(round)
        loop.call_soon_threadsafe(begun.set)
        gate.wait(20)
        return params, len(tries), 0.0

    async with Site(fit) as site:
        first = asyncio.create_task(site.ask(Train(0, MODEL_SENT)))
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        again = asyncio.create_task(site.ask(Train(0, MODEL_SENT)))
        gate.set()
        assert (await again).num_examples == 1
        assert (await site.ask(Train(1, MODEL_SENT))).num_examples == 2
        assert (await site.ask(Train(1, tensors(np.ones(6))))).num_examples == 3, "of another model"
    assert tries == [0, 1, 1]


async def test_models_that_were_not_agreed_and_other_seats_are_refused() -> None:
    async with Site(lambda params: (params, 1, 0.0)) as site:
        with pytest.raises(RemoteError, match="NaN or infinite"):
            await site.ask(Train(0, tensors([np.inf] * 6)))
        with pytest.raises((RemoteError, ConnectionError)):
            await site.ask(Train(0, tensors(np.zeros(7))))
    async with Site(lambda params: (params, 1, 0.0), server=1) as site:
        with pytest.raises(RemoteError, match="seat"):
            await site.ask(Train(0, MODEL_SENT))


async def test_it_scores_where_it_is_given_how() -> None:
    async with Site(lambda: None) as site:
        assert (await site.ask(Evaluate(0, MODEL_SENT, False))).rating == Rating({}, 0)
    async with Site(lambda: None, score=lambda weights: (float(weights["b"].sum()), None, 4)) as site:
        found = await site.ask(Evaluate(0, MODEL_SENT, False))
        assert found.rating == Rating({"loss": 9.0}, 4)


async def test_it_ends_with_the_courses_model() -> None:
    async with Site(lambda: None) as site:
        assert site.trainer.weights is None
        await site.ask(Finish(1, MODEL_SENT))
        await site.running
        assert site.trainer.weights is not None
        assert site.trainer.weights["b"].tolist() == [4, 5]


def test_a_function_that_wants_more_is_refused() -> None:
    with pytest.raises(ConfigError, match="the training function takes 'shard', which it is not given; it can have"):
        ArrayTrainer(lambda shard: None, TINY)
