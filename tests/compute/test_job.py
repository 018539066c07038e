import pytest

from p2pfl.compute.cohort import Cohort
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import EvaluateJob
from p2pfl.compute.threads import Threads
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec
from tests.compute.kit import check_compute, fit_job


def device(compute):
    return Device(DeviceSpec(), 0, 0, Backlog(compute))


COMPUTES = {
    "inline": Inline,
    "cohort": Cohort,
    "threads": Threads,
    "three threads": lambda: Threads(3),
    "device": lambda: device(Inline()),
    "device over a cohort": lambda: device(Cohort()),
    "device over threads": lambda: device(Threads(2)),
}


@check_compute
@pytest.mark.parametrize("make", COMPUTES.values(), ids=COMPUTES)
async def test_conformance(check, make):
    await check(make)


@pytest.mark.parametrize(
    ("train", "examples"),
    [({}, 24), ({"epochs": 3}, 72), ({"steps": 5}, 20)],
)
def test_a_job_knows_what_it_costs(train, examples):
    assert fit_job(**train).examples == examples


def test_a_batch_is_no_larger_than_the_shard():
    job = fit_job(steps=2)
    small = type(job)(job.params, job.model, job.shard.split(0.9, 0)[0], job.spec, 0, 0)
    assert len(small.shard) == 2
    assert small.examples == 4


def test_an_evaluation_costs_a_third():
    job = fit_job()
    assert EvaluateJob(job.params, job.model, job.shard).examples == 8
