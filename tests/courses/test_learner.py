import asyncio
import math
from dataclasses import replace

import pytest
import torch

from p2pfl.compute.inline import Inline
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.learner import seed_of
from p2pfl.errors import ComputeError, ConfigError, RemoteProtocolError
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.params import as_buffer
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec
from p2pfl.topology.families import build
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.courses.kit import Played, fit

PLAYED = Played(FEDAVG, FedAvgSettings(), build("star", 4), seed=3)


async def test_it_trains_on_its_own_shard_with_a_seed_of_its_own():
    learner = PLAYED.learner(2)
    result = await learner.fit(PLAYED.model.initial, 5)
    alone = fit(PLAYED.model.initial, PLAYED.model, PLAYED.shards[2], PLAYED.train, seed_of(3, "fit", 5, 2), 5)
    assert torch.equal(result.params, alone.params)
    found = await learner.evaluate(result.params, PLAYED.data.test)
    assert found == evaluate(result.params, PLAYED.model, PLAYED.data.test)


def test_vectors_travel_by_reference():
    learner, vector = PLAYED.learner(1), PLAYED.model.initial.clone()
    there = learner.vector(learner.tensors(vector))
    assert torch.equal(there, vector) and there.data_ptr() == vector.data_ptr()


@pytest.mark.parametrize(
    "spec", [TensorSpec("params", "f32", (3,)), TensorSpec("params", "f64", (650,)), TensorSpec("other", "f32", (650,))]
)
def test_another_shape_is_refused(spec):
    wrong = Tensors((spec,), (memoryview(bytes(spec.nbytes)),))
    with pytest.raises(RemoteProtocolError, match="was agreed"):
        PLAYED.learner(1).vector(wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_unless_the_caller_looks(value):
    learner, vector = PLAYED.learner(1), PLAYED.model.initial.clone()
    vector[7] = value
    sent = Tensors(learner.schema, (as_buffer(vector),))
    with pytest.raises(RemoteProtocolError, match="NaN or infinite"):
        learner.vector(sent)
    assert not learner.vector(sent, finite=False).isfinite().all()


async def test_data_that_drift_are_those_of_the_round():
    whole = Shift("scale", 3.0, onset=4)
    learner = PLAYED.learner(2)
    drifting = replace(learner, shard=replace(learner.shard, shift=whole))
    halfway = replace(learner.shard, shift=Shift("scale", 2.0))
    found = await drifting.fit(PLAYED.model.initial, 2)
    alone = fit(PLAYED.model.initial, PLAYED.model, halfway, PLAYED.train, seed_of(3, "fit", 2, 2), 2)
    assert torch.equal(found.params, alone.params)
    assert not torch.equal(found.params, (await learner.fit(PLAYED.model.initial, 2)).params)


# -- training that fails -----------------------------------------------------------------------------------------------


def in_time(compute, limit_seconds):
    return replace(PLAYED.learner(2, compute), train=TrainSpec(limit_seconds=limit_seconds))


class Takes(Inline):
    """Needs its time, and may then fail."""

    def __init__(self, seconds, error=None):
        super().__init__()
        self.seconds = seconds
        self.error = error

    async def run(self, job):
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return await super().run(job)


async def test_a_limit_ends_what_takes_longer_and_nothing_else():
    loop, initial = asyncio.get_running_loop(), PLAYED.model.initial
    for limit in (0.0, 60.1):
        assert (await in_time(Takes(60.0), limit).fit(initial, 0)).num_examples == len(PLAYED.shards[2])
    before = loop.time()
    with pytest.raises(ComputeError, match=r"longer than train.limit_seconds = 59; raise that, or train less"):
        await in_time(Takes(60.0), 59.0).fit(initial, 0)
    assert loop.time() - before == pytest.approx(59.0)


async def test_whatever_training_raises_is_told_in_one_sentence():
    for error, words in (
        (KeyError("weight"), "local training failed: KeyError: 'weight'"),
        (TimeoutError("of its own"), "local training failed: TimeoutError: of its own"),
        (MemoryError(), "local training failed: MemoryError"),
    ):
        with pytest.raises(ComputeError) as caught:
            await in_time(Takes(1.0, error), 2.0).fit(PLAYED.model.initial, 0)
        assert str(caught.value) == words and caught.value.__cause__ is error


async def test_a_mistake_of_the_user_and_a_cancellation_stay_what_they_are():
    mistake = ConfigError("train.optimizer is 'Adm'; take Adam")
    with pytest.raises(ConfigError) as caught:
        await in_time(Takes(1.0, mistake), 2.0).fit(PLAYED.model.initial, 0)
    assert caught.value is mistake
    training = asyncio.create_task(in_time(Takes(1.0), 2.0).fit(PLAYED.model.initial, 0))
    await asyncio.sleep(0.5)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
