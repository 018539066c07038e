"""Traced training: what each seat has learned in each round can be read off any mean of models."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.compute.inline import Inline
from p2pfl.compute.job import EvaluateJob, FitJob
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.specs import ModelSpec, TrainSpec
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.tracer import Tracer, traces
from tests.courses.kit import dataset

N = 5


@cache
def model() -> Model:
    return build_model(ModelSpec("logistic"), dataset(), 0)


def job(round: int, params: torch.Tensor | None = None) -> FitJob:
    return FitJob(model().initial if params is None else params, model(), dataset().train, TrainSpec(), 0, round)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 9)), max_size=8))
def test_a_model_holds_how_often_each_seat_has_trained_in_each_round(trained: list[tuple[int, int]]) -> None:
    async def train() -> torch.Tensor:
        params = job(0).params
        for seat, round in trained:
            params = (await Tracer(Inline(), seat, N).run(job(round, params))).params
        return params

    found = traces(run_virtual(train()), job(0).params, N)
    for seat in range(N):
        for round in range(10):
            assert float(found[round, seat]) == pytest.approx(trained.count((seat, round)), abs=1e-5)
    assert float(found.sum()) == pytest.approx(len(trained), abs=1e-3)


async def test_the_params_of_a_job_stay_and_its_cost_too() -> None:
    asked = job(1)
    before = asked.params.clone()
    tracer = Tracer(Inline(), 2, N)
    (result,) = await tracer.run_all([asked])
    assert not isinstance(result, Exception)
    assert torch.equal(asked.params, before) and not torch.equal(result.params, before)
    assert result.num_examples == len(asked.shard) and result.loss == 0.5
    traced = tracer._traced(asked)
    assert (traced.examples, traced.result_bytes) == (asked.examples, asked.result_bytes)


async def test_an_evaluation_tells_something_of_the_model_and_other_jobs_are_done_as_they_are() -> None:
    class Other:
        examples, result_bytes = 1, 0

        def __call__(self) -> str:
            return "done"

    tracer, asked = Tracer(Inline(), 2, N), job(0)
    one = await tracer.run(EvaluateJob(asked.params, asked.model, asked.shard))
    other = await tracer.run(EvaluateJob(asked.params + 1, asked.model, asked.shard))
    assert one.loss != other.loss and one.num_examples == len(asked.shard)
    assert await tracer.run(Other()) == "done"
    assert tracer.parallel == 1 and repr(tracer) == "<Tracer of seat 2 before <Inline>>"
    await tracer.close()
    with pytest.raises(RuntimeError):
        await tracer.run(Other())
