"""Operations of all that was trained."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from p2pfl.compute import meter as module
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import EvaluateJob
from p2pfl.compute.meter import FlopMeter
from p2pfl.learn.flops import training_flops
from tests.compute.kit import Check, check_compute, fit_job


@check_compute
async def test_a_compute_that_is_watched_is_one(check: Check) -> None:
    await check(lambda: FlopMeter().on(Inline()))


async def test_trained_examples_count_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(module, "training_flops", lambda *args: counted.append(args) or training_flops(*args))
    meter = FlopMeter(before=5.0)
    compute, job = meter.on(Inline()), fit_job(0)
    each = job.examples * training_flops(job.model, job.shard.dataset, job.spec.batch_size)
    await compute.run(job)
    await compute.run_all([job, EvaluateJob(job.params, job.model, job.shard), job])
    assert meter.flops == 5.0 + 3 * each > 5.0
    assert len(counted) == 1, "once for a model"


async def test_a_function_of_the_users_own_may_do_anything() -> None:
    meter, job = FlopMeter(), fit_job(0)
    await meter.note(replace(job, spec=replace(job.spec, function="mine:fit")))
    await meter.note(job)
    assert meter.flops is None


async def test_what_cannot_be_counted_is_told_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> float:
        raise AssertionError("no such formula")

    monkeypatch.setattr(module, "training_flops", fail)
    meter = FlopMeter()
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            await meter.on(Inline()).run(fit_job(seed))
    assert meter.flops is None
    assert [record.getMessage() for record in caplog.records if "cannot be counted: no such" in record.getMessage()]
