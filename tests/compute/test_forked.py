"""One process that computes: what it knows, when it is forked anew, and whose end it survives."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
import torch

from p2pfl.compute.arena import Arena
from p2pfl.compute.crew import WorkerLost
from p2pfl.compute.forked import Forked, Known
from p2pfl.compute.job import EvaluateJob
from p2pfl.sim.loop import VirtualLoop
from tests.compute.kit import fit_job

pytestmark = pytest.mark.sockets  # an answer takes real time, and nothing else waits here


@pytest.fixture
def worker():
    worker = Forked(Known(), Arena())
    yield worker
    worker.end()


def has_ended(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def computed(worker, *jobs):
    return await asyncio.wrap_future(worker.begin(jobs))


async def test_it_is_forked_when_it_is_needed_and_kept(worker):
    job = fit_job()
    assert worker.pid is None
    (found,) = await computed(worker, job)
    pid = worker.pid
    assert torch.equal(found.params, job().params)
    await computed(worker, replace(job, seed=3), EvaluateJob(found.params, job.model, job.shard))
    assert worker.pid == pid
    await computed(worker, fit_job())
    assert worker.pid != pid


async def test_what_was_known_at_the_start_needs_no_other_fork():
    job, known = fit_job(), Known()
    known.keep([job.model, job.shard.dataset])
    worker = Forked(known, Arena())
    worker.start()
    pid = worker.pid
    await computed(worker, job)
    assert worker.pid == pid
    worker.end()
    assert worker.pid is None


def test_things_are_forgotten_that_were_not_used_since_there_was_something_new():
    known, lasting, (first, second, third) = Known(), fit_job(), (fit_job() for _ in range(3))
    known.keep([lasting.model])
    known.meet([first])
    known.meet([second])
    assert {first.model, second.model, lasting.model} <= known.things.keys(), "two that take turns are both kept"
    known.meet([first])
    known.meet([third])
    assert {first.model, second.model, third.model} <= known.things.keys()
    known.meet([third])
    known.meet([fourth := fit_job()])
    assert {third.model, fourth.model, lasting.model} <= known.things.keys()
    assert not {first.model, second.model} & known.things.keys()


async def test_results_are_not_copied_and_their_places_are_used_again(worker):
    job = fit_job()
    (first,) = await computed(worker, job)
    (second,) = await computed(worker, job)
    place = first.params.data_ptr()
    assert second.params.data_ptr() != place
    kept = first.params.clone()
    assert torch.equal(first.params, kept)
    del first
    (third,) = await computed(worker, job)
    assert place in (third.params.data_ptr(), worker._arena.empty(kept.numel()).data_ptr())


async def test_parcels_are_answered_in_their_order(worker):
    jobs = [replace(fit_job(), seed=seed) for seed in range(3)]
    futures = [worker.begin([job]) for job in jobs]
    assert worker.pending == 3
    for future, job in zip(futures, jobs, strict=True):
        (found,) = await asyncio.wrap_future(future)
        assert torch.equal(found.params, job().params)
    assert worker.pending == 0


async def test_a_death_in_the_middle_of_work_is_told_and_the_next_parcel_has_a_new_process(worker):
    job = fit_job(epochs=10**6)
    lost = worker.begin([job])
    after = worker.begin([replace(job, spec=replace(job.spec, epochs=1))])
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="has died"):
        await asyncio.wrap_future(lost)
    assert (await asyncio.wrap_future(after))[0].steps == 6


async def test_a_death_between_two_parcels_is_nobody_s_fault(worker):
    job = fit_job()
    await computed(worker, job)
    process = worker._process
    os.kill(worker.pid, signal.SIGKILL)
    has_ended(process.pid)
    assert (await computed(worker, job))[0].steps == 6


async def test_a_process_that_cannot_be_forked_is_a_loss(worker, monkeypatch):
    def refuse():
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(WorkerLost, match="no more processes"):
        await computed(worker, fit_job())
    monkeypatch.undo()
    assert (await computed(worker, fit_job()))[0].steps == 6


def test_it_moves_from_one_loop_to_the_next_even_in_the_middle_of_work(worker):
    slow, quick = fit_job(epochs=2000), fit_job()

    async def begin_and_leave():
        worker.begin([slow])

    for factory in (asyncio.SelectorEventLoop, VirtualLoop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(begin_and_leave())
    with asyncio.Runner() as runner:
        (found,) = runner.run(computed(worker, quick))
    assert torch.equal(found.params, quick().params), "and not the answer that nobody took"


async def test_end_does_not_wait_for_work(worker):
    worker.begin([fit_job(epochs=10**7)])
    worker.end()
    assert worker.pid is None


async def test_a_parcel_larger_than_a_pipe_holds(worker):
    job = fit_job()
    jobs = [replace(job, seed=2**62 + seed) for seed in range(6000)]
    found = await computed(worker, *jobs)
    assert len(found) == 6000
    assert torch.equal(found[-1].params, jobs[-1]().params)


async def test_signals_of_the_parent_are_not_the_worker_s(worker):
    caught = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, caught.append, 1)
    job = fit_job()
    await computed(worker, job)
    os.kill(worker.pid, signal.SIGINT)
    pid = worker.pid
    await computed(worker, job)
    assert worker.pid == pid, "a terminal's Ctrl-C is the parent's business"
    process = worker._process
    os.kill(pid, signal.SIGTERM)
    has_ended(process.pid)
    await computed(worker, job)
    assert not caught
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
