"""Workers on this machine: what they share, what they survive, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from p2pfl.compute.arena import Arena
from p2pfl.compute.job import EvaluateJob, FitJob
from p2pfl.compute.processes import Processes, available_cpus
from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.data import Shard
from p2pfl.learn.model import Model
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec
from tests.compute.kit import Call, blobs, check_compute, fit_job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@check_compute
async def test_conformance(check):
    await check(lambda: Processes(2))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(compute: Processes) -> list[int | None]:
    return [worker.pid for worker in compute._workers]


def jobs_of_one_model(count: int) -> list[FitJob]:
    first = fit_job()
    return [
        replace(first, seed=seed, shard=Shard(first.shard.dataset, first.shard.indices[: 3 + seed]))
        for seed in range(count)
    ]


async def test_many_jobs_give_the_bytes_of_inline():
    compute, jobs = Processes(2), jobs_of_one_model(20)
    drifting = replace(jobs[3], drift=torch.full_like(jobs[3].params, 0.01), spec=TrainSpec(momentum=0.9, proximal=0.1))
    begun = replace(jobs[5], spec=TrainSpec(optimizer="AdamW", lr=0.01), memory=torch.empty(0))
    gone_on = replace(begun, memory=begun().memory)
    idle = replace(begun, shard=replace(begun.shard, indices=begun.shard.indices[:0]))
    rolling = replace(jobs[6], spec=TrainSpec(momentum=0.5), memory=torch.full_like(jobs[6].params, 0.1))
    shifted = replace(jobs[4], shard=replace(jobs[4].shard, shift=Shift("noise", 0.5, 3)))
    evaluation = EvaluateJob(jobs[0].params, jobs[0].model, shifted.shard)
    everything = [*jobs, drifting, evaluation, shifted, begun, gone_on, idle, rolling]
    for _ in range(2):
        for found, job in zip(await compute.run_all(everything), everything, strict=True):
            alone = job()
            if isinstance(job, EvaluateJob):
                assert found == alone
            else:
                assert torch.equal(found.params, alone.params)
                assert (found.memory is None) == (alone.memory is None) == (job.memory is None)
                assert job.memory is None or torch.equal(found.memory, alone.memory)
                assert (found.steps, found.num_examples) == (alone.steps, alone.num_examples)
                assert found.loss == alone.loss or not found.steps
    await compute.close()


async def test_results_stay_when_the_memory_is_used_again():
    compute, jobs = Processes(1), jobs_of_one_model(2)
    (first,) = await compute.run_all(jobs[:1])
    kept = first.params.clone()
    await compute.run_all(jobs[1:])
    assert torch.equal(first.params, kept)
    await compute.close()


async def test_workers_are_started_once_and_anew_only_for_what_they_do_not_know():
    compute = Processes(2)
    await compute.run_all(jobs_of_one_model(4)[:0])
    assert pids(compute) == [None, None], "nothing was to be done yet"
    jobs = jobs_of_one_model(4)
    compute.start([jobs[0].model, jobs[0].shard.dataset])
    first = pids(compute)
    await asyncio.wait([asyncio.create_task(compute.run(job)) for job in jobs])
    assert pids(compute) == first
    other = fit_job()
    await asyncio.wait([asyncio.create_task(compute.run(job)) for job in (other, other)])
    second = pids(compute)
    assert not set(second) & set(first)
    await asyncio.wait([asyncio.create_task(compute.run(job)) for job in (other, *jobs, other)])
    assert pids(compute) == second
    await compute.close()
    assert not any(map(alive, first + second))


async def test_a_vector_that_jobs_share_is_put_into_shared_memory_once(monkeypatch):
    compute, jobs, copied = Processes(2), jobs_of_one_model(9), []
    copy = Arena.copy

    def counted(arena, vector):
        found = copy(arena, vector)
        copied.append(found is not vector)
        return found

    monkeypatch.setattr(Arena, "copy", counted)
    monkeypatch.setattr("p2pfl.compute.crew._GRAIN", 0)
    await compute.run_all(jobs)
    assert sum(copied) == 1
    evaluations = [EvaluateJob((await compute.run(job)).params, job.model, job.shard) for job in jobs[:2]]
    copied.clear()
    await compute.run_all(evaluations)
    assert sum(copied) == 0, "results lie there already"
    await compute.close()


class Deadly(nn.Module):
    """Kills its process when it sees a large number; the first time only, if there is a file to remember by."""

    def __init__(self, memory: Path | None = None):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.memory = memory
        self.parent = os.getpid()

    def forward(self, x):
        if x.max() > 100 and os.getpid() != self.parent and not (self.memory and self.memory.exists()):
            if self.memory is not None:
                self.memory.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x)


def deadly_jobs(count: int, at: int, memory: Path | None = None) -> list[FitJob]:
    dataset = blobs()
    dataset.x[dataset.train_indices[at]] = 1000.0
    model = Model.of(Deadly(memory), nn.functional.cross_entropy, *dataset.batch(dataset.test_indices[:2]))
    shards = [Shard(dataset, dataset.train_indices[n : n + 1]) for n in range(count)]
    return [FitJob(model.initial, model, shard, TrainSpec(tier="plain", lr=0.001), 0, 0) for shard in shards]


async def test_the_jobs_of_a_worker_that_dies_run_again(tmp_path):
    compute, jobs = Processes(2), deadly_jobs(12, 5, tmp_path / "died")
    found = await compute.run_all(jobs)
    assert (tmp_path / "died").exists()
    assert all(torch.equal(result.params, job().params) for result, job in zip(found, jobs, strict=True))
    await compute.close()


async def test_a_job_that_kills_its_workers_is_given_up_and_the_others_are_not():
    compute, jobs = Processes(2), deadly_jobs(12, 5)
    found = await compute.run_all(jobs)
    assert isinstance(found.pop(5), ComputeError)
    jobs.pop(5)
    assert all(torch.equal(result.params, job().params) for result, job in zip(found, jobs, strict=True))
    with pytest.raises(ComputeError, match="two workers died of this job"):
        await compute.run(deadly_jobs(1, 0)[0])
    assert (await compute.run(jobs[0])).steps == 1, "it goes on"
    await compute.close()


async def test_errors_of_jobs_are_carried_over():
    compute, job = Processes(1), fit_job()
    wrong = replace(job, spec=TrainSpec(optimizer="SGD", optimizer_parameters={"speed": 3}))
    good, bad = await compute.run_all([job, wrong])
    assert good.steps > 0
    assert isinstance(bad, ConfigError)
    assert "does not take its parameters" in str(bad)
    await compute.close()


async def test_jobs_of_other_kinds_run_here():
    compute = Processes(1)
    assert await compute.run(Call(os.getpid)) == os.getpid()
    await compute.close()


SCRIPT = """
import asyncio, os, sys
from p2pfl.compute.processes import Processes
from tests.compute.kit import fit_job

async def main():
    compute = Processes(2)
    job = fit_job()
    compute.start([job.model])
    await compute.run(job)
    print(*(worker.pid for worker in compute._workers), flush=True)
    {then}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("then", "number"),
    [("os.kill(os.getpid(), 9)", -9), ("pass", 0), ("await compute.close()", 0), ("os.kill(os.getpid(), 2)", None)],
    ids=["killed", "forgotten", "closed", "interrupted"],
)
def test_no_worker_outlives_the_parent(then, number):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", SCRIPT.format(then=then)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    workers = list(map(int, run.stdout.split()))
    assert len(workers) == 2, run.stderr
    assert number is None or run.returncode == number, run.stderr
    ends = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not any(map(alive, workers))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_nothing_is_left_of_it_here():
    gc.collect()  # what other tests have left
    compute = Processes(2)
    files, threads = open_files(), threading.active_count()
    compute.start()
    await compute.run_all([*jobs_of_one_model(30), Call(lambda: 7)])
    assert threading.active_count() <= threads, "a process with threads should not fork"
    await compute.close()
    assert open_files() == files
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 - does not wait; there would be a zombie


async def test_close_in_the_middle_of_work_lets_it_be_done():
    compute, jobs = Processes(2), jobs_of_one_model(5)
    taken = asyncio.create_task(compute.run_all(jobs))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert all(worker.pending for worker in compute._workers[:1])
    await compute.close()
    assert [result.steps for result in await taken] == [job().steps for job in jobs]
    assert pids(compute) == [None, None]


async def test_given_up_work_does_not_hold_up_the_end():
    compute = Processes(1)
    given_up = asyncio.create_task(compute.run(fit_job(epochs=10**7)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert compute._workers[0].pending
    given_up.cancel()
    await asyncio.wait([given_up])
    await compute.close()
    assert pids(compute) == [None]


@pytest.mark.parametrize("workers", [-1])
def test_a_count_that_cannot_be(workers):
    with pytest.raises(ConfigError, match=r"--compute\.workers"):
        Processes(workers)


def test_the_cpus_that_may_be_used():
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


async def test_a_virtual_clock_stands_while_workers_compute():
    compute = Processes(2)
    backlog = Backlog(compute)
    started = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for seat, job in enumerate(jobs_of_one_model(6)):
            group.create_task(Device(DeviceSpec(examples_per_second=1.0), 0, seat, backlog).run(job))
    assert asyncio.get_running_loop().time() - started == 3 + 5
    await compute.close()


def test_repr():
    assert repr(Processes(3)) == "<Processes 3>"
