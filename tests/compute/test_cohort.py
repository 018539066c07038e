"""What `Cohort` does beyond the conformance kit: it computes together what is asked for in one turn of the loop."""

import asyncio
from unittest import mock

import pytest
import torch

from p2pfl.compute import cohort
from p2pfl.compute.cohort import Cohort
from p2pfl.compute.job import EvaluateJob
from p2pfl.learn.tiers import fit_all
from tests.compute.kit import Call, blobs, classifier, fit_job


async def test_one_turn_is_one_computation() -> None:
    compute, job = Cohort(), fit_job()
    jobs = [type(job)(job.params, job.model, job.shard, job.spec, seed) for seed in range(5)]
    with mock.patch.object(cohort, "fit_all", wraps=fit_all) as together:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(compute.run(job)) for job in jobs]
            group.create_task(compute.run(EvaluateJob(job.params, job.model, job.shard)))
        await compute.run(jobs[0])
    assert [len(call.args[0]) for call in together.call_args_list] == [5, 1]
    assert all(torch.equal(task.result().params, job().params) for task, job in zip(tasks, jobs, strict=True))


async def test_who_is_cancelled_is_not_computed() -> None:
    compute, done = Cohort(), []
    tasks = [asyncio.create_task(compute.run(Call(lambda at=at: done.append(at)))) for at in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert done == [0, 2]


async def test_an_error_reaches_only_its_job() -> None:
    compute, job = Cohort(), fit_job()

    def fail(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise StopIteration

    dataset = blobs()
    broken = classifier(dataset)
    object.__setattr__(broken, "loss", fail)
    bad = type(job)(broken.initial, broken, dataset.train, job.spec, 0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(compute.run(job))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await compute.run(bad)
    assert task.result().steps == 6


def test_repr() -> None:
    assert repr(Cohort()) == "<Cohort>"
