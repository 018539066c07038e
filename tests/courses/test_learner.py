import doctest
import math

import pytest
import torch

import p2pfl.courses.learner
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.learner import seed_of
from p2pfl.errors import RemoteProtocolError
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.params import as_buffer
from p2pfl.topology.families import build
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.courses.kit import Played, fit

PLAYED = Played(FEDAVG, FedAvgSettings(), build("star", 4), seed=3)


def test_seeds_are_the_same_on_every_host():
    """Known values: another one would change every result that was ever published."""
    assert seed_of(0, "cohort", 0) == 7288011320218236492
    assert len({seed_of(0, "fit", number, seat) for number in range(30) for seat in range(30)}) == 900
    assert 0 <= seed_of("x") < 2**63


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


def test_the_docstrings_are_true():
    assert doctest.testmod(p2pfl.courses.learner).failed == 0
