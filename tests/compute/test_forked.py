"""One worker process: what it knows, what is sent, and how it ends."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch

from p2pfl.compute.forked import Forked, Known, nbytes
from p2pfl.compute.job import EvaluateJob
from p2pfl.compute.remote import WorkerLost
from tests.compute.kit import fit_job

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_it_knows_what_its_jobs_use_and_nothing_else():
    job, other = fit_job(), fit_job()
    known = Known().and_of([job, job])
    assert known.covers([job]) and not known.covers([job, other])
    both = known.and_of([other])
    assert both.covers([job, other]) and len(both.models) == len(both.datasets) == 2


def test_it_computes_with_memory_of_just_the_size_that_is_said():
    job = fit_job()
    evaluation = EvaluateJob(job.params, job.model, job.shard)
    drifting = replace(job, drift=torch.ones_like(job.params))
    for one in (job, drifting, evaluation):
        worker = Forked(Known().and_of([one]), nbytes(one))
        (found,) = worker.run([one])
        alone = one()
        assert found == alone if one is evaluation else torch.equal(found.params, alone.params)
        worker.end()


def test_vectors_that_jobs_share_are_laid_down_once():
    jobs = [replace(fit_job(), seed=0)]
    jobs += [replace(jobs[0], seed=seed) for seed in range(1, 4)]
    worker = Forked(Known().and_of(jobs), sum(map(nbytes, jobs)))
    worker.run(jobs)
    assert worker._memory._used < sum(map(nbytes, jobs)) - 2 * jobs[0].params.nbytes
    worker.end()


def test_a_process_that_is_gone_is_a_worker_lost_and_can_be_ended():
    job = fit_job()
    worker = Forked(Known().and_of([job]), nbytes(job))
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match=f"worker {worker.pid} ended"):
        worker.run([job])
    worker.end()


def test_an_interrupt_of_the_terminal_is_left_to_the_parent():
    job = fit_job()
    worker = Forked(Known().and_of([job]), nbytes(job))
    worker.run([job])
    os.kill(worker.pid, signal.SIGINT)
    (found,) = worker.run([job])
    assert found.steps > 0
    worker.end()
