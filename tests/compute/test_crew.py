"""Who gets which jobs, and what becomes of those that a worker has died of: with workers that are none."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.compute.crew import Crew, Failure, WorkerLost, shared_vectors
from p2pfl.compute.job import EvaluateJob
from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.sim.loop import run_virtual
from tests.compute.kit import Call, fit_job


class Fake:
    """Answers in a later turn of the loop, in order; dies of the jobs in `deadly`, as often as it says."""

    def __init__(self, deadly=()):
        self.parcels = []
        self.deadly = Counter(deadly)
        self.waiting = deque()

    @property
    def pending(self):
        return len(self.waiting)

    def begin(self, jobs):
        future = Future()
        future.set_running_or_notify_cancel()
        self.parcels.append([job.seed for job in jobs])
        self.waiting.append((future, jobs))
        asyncio.get_running_loop().call_soon(self.answer)
        return future

    def answer(self):
        future, jobs = self.waiting.popleft()
        killer = next((job.seed for job in jobs if self.deadly[job.seed] > 0), None)
        if killer is None:
            future.set_result([Evaluation(float(job.seed), None, len(jobs)) for job in jobs])
        else:
            self.deadly[killer] -= 1
            future.set_exception(WorkerLost("it was killed"))


JOB = fit_job()


def jobs(sizes):
    """Jobs of so many examples, and large models: an example is as much work as is sent by itself."""
    rows = JOB.shard.indices
    return [
        replace(JOB, seed=seed, shard=Shard(JOB.shard.dataset, rows[:size]), spec=replace(JOB.spec, epochs=10**7))
        for seed, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(0, 24), max_size=30), st.integers(1, 4))
def test_each_job_is_done_once_and_has_its_own_outcome(sizes, count):
    workers = [Fake() for _ in range(count)]
    found = run_virtual(Crew(workers, lambda: None).run_all(jobs(sizes)))
    assert [outcome.loss for outcome in found] == list(range(len(sizes)))
    assert sorted(seed for worker in workers for parcel in worker.parcels for seed in parcel) == list(range(len(sizes)))


@given(st.lists(st.integers(1, 24), min_size=1, max_size=30), st.integers(1, 4))
def test_no_worker_has_much_more_to_do_than_another(sizes, count):
    """A parcel is begun by who is through first, and has no more than half of a fair share: plus one job."""
    workers = [Fake() for _ in range(count)]
    run_virtual(Crew(workers, lambda: None).run_all(jobs(sizes)))
    largest = max(sum(sizes[seed] for seed in parcel) for worker in workers for parcel in worker.parcels)
    assert largest <= math.ceil(sum(sizes) / (2 * count)) + max(sizes)


async def test_small_jobs_go_together_and_few_do_not_wake_everybody():
    small = [replace(job, spec=JOB.spec) for job in jobs([3] * 40)]
    workers = [Fake(), Fake()]
    await Crew(workers, lambda: None).run_all(small)
    assert [len(worker.parcels) for worker in workers] == [1, 0]


async def test_a_parcel_has_no_more_results_than_go_into_memory(monkeypatch):
    monkeypatch.setattr("p2pfl.compute.crew._MOST_BYTES", 3 * JOB.result_bytes)
    worker = Fake()
    await Crew([worker], lambda: None).run_all([replace(job, spec=JOB.spec) for job in jobs([3] * 7)])
    assert list(map(len, worker.parcels)) == [3, 3, 1]


async def test_who_has_least_to_do_is_asked_first():
    workers = [Fake(), Fake()]
    crew = Crew(workers, lambda: None)
    async with asyncio.TaskGroup() as group:
        for job in jobs([1, 1]):
            group.create_task(crew.run_all([job]))
    assert [worker.parcels for worker in workers] == [[[0]], [[1]]]


async def test_what_a_worker_had_when_it_died_is_done_again():
    workers = [Fake({2: 1}), Fake({2: 1})]
    found = await Crew(workers, lambda: None).run_all([replace(job, spec=JOB.spec) for job in jobs([3] * 9)])
    assert [outcome.loss for outcome in found] == list(range(9))
    assert [2] in workers[0].parcels + workers[1].parcels, "a suspect goes alone"


async def test_of_a_job_that_kills_workers_only_two_die():
    workers = [Fake({4: 9}), Fake({4: 9})]
    found = await Crew(workers, lambda: None).run_all([replace(job, spec=JOB.spec) for job in jobs([3] * 9)])
    killer = found.pop(4)
    assert isinstance(killer, ComputeError)
    assert "two workers died of this job" in str(killer)
    assert "it was killed" in str(killer)
    assert [outcome.loss for outcome in found] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert workers[0].deadly[4] + workers[1].deadly[4] == 16


async def test_a_worker_that_cannot_work_is_an_error_of_its_jobs():
    class Broken(Fake):
        def begin(self, jobs):
            future = super().begin(jobs)
            self.waiting[-1] = (Future(), jobs)
            future.set_exception(ComputeError("no"))
            return future

    found = await Crew([Broken()], lambda: None).run_all(jobs([1, 1]))
    assert [str(error) for error in found] == ["no", "no"]


async def test_jobs_of_other_kinds_are_done_here():
    worker = Fake()
    found = await Crew([worker], lambda: None).run_all([Call(lambda: 7), *jobs([1]), Call(lambda: 8)])
    assert found[::2] == [7, 8]
    assert worker.parcels == [[0]]


async def begun(worker):
    while not worker.pending:  # noqa: ASYNC110 - only turns of the loop pass
        await asyncio.sleep(0)


async def test_a_virtual_clock_stands_while_they_work():
    worker, loop = Fake(), asyncio.get_running_loop()
    began = asyncio.create_task(Crew([worker], lambda: None).run_all(jobs([1])))
    await begun(worker)
    assert loop.computing == 1
    await began
    await asyncio.sleep(0)
    assert loop.computing == 0


async def test_who_is_cancelled_leaves_the_worker_to_end_its_parcel():
    worker = Fake()
    task = asyncio.create_task(Crew([worker], lambda: None).run_all(jobs([1, 1])))
    await begun(worker)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.parcels == [[0]], "the second is never begun"
    assert [outcome.loss for outcome in await Crew([worker], lambda: None).run_all(jobs([1]))] == [0]


def test_vectors_that_several_jobs_have():
    own = torch.zeros(9)
    many = [JOB, replace(JOB, seed=1), replace(JOB, params=own), Call(lambda: 7)]
    assert shared_vectors(many) == [] or shared_vectors(many)[0] is JOB.params
    assert len(shared_vectors(many)) == 1
    both = [*many, EvaluateJob(own, JOB.model, JOB.shard)]
    assert [id(vector) for vector in shared_vectors(both)] == [id(JOB.params), id(own)]
    assert shared_vectors(both[2:3]) == []


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError("train.lr is wrong; mend it"), ConfigError, "train.lr is wrong; mend it"),
        (LookupError("no such thing"), ComputeError, "LookupError in a worker: no such thing"),
    ],
)
def test_errors_are_sent_in_words(error, kind, text):
    try:
        raise error
    except Exception as raised:
        found = Failure.of(raised).error
    assert type(found) is kind
    assert str(found) == text
    assert "test_errors_are_sent_in_words" in found.__notes__[0]


def test_a_crew_that_is_closed_ends_when_the_last_call_has_left():
    ended = []
    crew = Crew([], lambda: ended.append(True))
    with crew.open(), crew.open():
        crew.close()
        assert not ended
        with pytest.raises(RuntimeError, match="has been closed"), crew.open():
            pass
        assert not ended
    assert ended == [True]
