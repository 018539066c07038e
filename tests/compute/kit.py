"""The conformance kit of computes: what every implementation of `Compute` does.

A new one is a line in the list of test_job.py: a function without parameters that makes it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from p2pfl.compute.job import Compute, EvaluateJob, FitJob
from p2pfl.learn.data import Dataset
from p2pfl.learn.model import Model
from p2pfl.learn.specs import TrainSpec

Make = Callable[[], Compute]
Check = Callable[[Make], Awaitable[None]]


def blobs(rows: int = 30) -> Dataset:
    """Three clouds in the plane, easy to tell apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 3
    x = torch.randn(rows, 2, generator=generator) + 3 * torch.eye(3, 2)[y]
    return Dataset("blobs", x, y, ("a", "b", "c"), torch.arange(rows - 6), torch.arange(rows - 6, rows))


def classifier(dataset: Dataset) -> Model:
    module = nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    return Model.of(module, nn.functional.cross_entropy, *dataset.batch(dataset.train_indices[:2]))


def fit_job(seed: int = 0, **train: int) -> FitJob:
    dataset = blobs()
    model = classifier(dataset)
    return FitJob(model.initial, model, dataset.train, TrainSpec(batch_size=4, **train), seed, 0)


@dataclass
class Call:
    """A job of the test's own."""

    work: Callable[[], object]
    examples: int = 1
    result_bytes: int = 0

    def __call__(self) -> object:
        return self.work()


@dataclass
class Gate:
    """A job that says when it has begun, and ends when it is let."""

    begun: threading.Event = field(default_factory=threading.Event)
    let: threading.Event = field(default_factory=threading.Event)
    examples: int = 1
    result_bytes: int = 0

    def __call__(self) -> str:
        self.begun.set()
        assert self.let.wait(20)
        return "through"


async def gives_the_bytes_of_the_job(make: Make) -> None:
    compute, job = make(), fit_job()
    before = job.params.clone()
    alone, there = job(), await compute.run(job)
    assert torch.equal(alone.params, there.params) and alone.loss == there.loss
    assert torch.equal(before, job.params), "the job's own vector was written to"
    evaluation = EvaluateJob(there.params, job.model, job.shard, ("torch.nn.functional:cross_entropy",))
    found = await compute.run(evaluation)
    assert found == evaluation() and set(found.own) == {"cross_entropy"}
    await compute.close()


async def gives_each_its_own_result(make: Make) -> None:
    compute = make()
    jobs = [fit_job(seed) for seed in range(6)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(compute.run(job)) for job in jobs]
    assert all(torch.equal(task.result().params, job().params) for task, job in zip(tasks, jobs, strict=True))
    await compute.close()


async def carries_errors(make: Make) -> None:
    compute = make()

    def fail() -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        await compute.run(Call(fail))
    with pytest.raises(RuntimeError, match="raised StopIteration"):  # which no future can carry
        await compute.run(Call(lambda: next(iter(()))))
    assert await compute.run(Call(lambda: 7)) == 7, "it does not go on after an error"
    await compute.close()


async def can_be_cancelled(make: Make) -> None:
    compute = make()
    waiting = [asyncio.create_task(compute.run(fit_job(seed))) for seed in range(3)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() or task.exception() is None for task in waiting)
    assert await compute.run(Call(lambda: 7)) == 7, "it does not go on after a cancellation"
    await compute.close()


async def keeps_the_order_of_many(make: Make) -> None:
    compute = make()
    jobs = [fit_job(seed) for seed in range(5)]
    broken = LookupError("no such thing")

    def fail() -> None:
        raise broken

    found = await compute.run_all(
        [*jobs[:2], Call(fail), *jobs[2:], EvaluateJob(jobs[0].params, jobs[0].model, jobs[0].shard)]
    )
    assert found.pop(2) is broken
    assert found.pop().num_examples == len(jobs[0].shard)
    assert all(torch.equal(one.params, job().params) for one, job in zip(found, jobs, strict=True))
    assert await compute.run_all([]) == []
    await compute.close()
    with pytest.raises(RuntimeError, match="has been closed"):
        await compute.run_all([Call(lambda: 7)])


async def closes(make: Make) -> None:
    compute = make()
    taken = asyncio.create_task(compute.run(fit_job()))
    await asyncio.sleep(0)
    await compute.close()
    await compute.close()
    assert (await taken).steps > 0, "a job that was taken is still done"
    with pytest.raises(RuntimeError, match="has been closed"):
        await compute.run(fit_job())


CHECKS: list[Check] = [
    gives_the_bytes_of_the_job, gives_each_its_own_result, keeps_the_order_of_many, carries_errors, can_be_cancelled,
    closes,
]  # fmt: skip
check_compute = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
