"""Jobs on a real Ray cluster of this machine, with two workers."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from p2pfl.compute.cluster import Ray
from p2pfl.compute.job import EvaluateJob, FitJob
from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.learn.model import Model
from p2pfl.learn.specs import TrainSpec
from tests.compute.kit import Call, blobs, check_compute, fit_job
from tests.compute.test_processes import deadly_jobs, jobs_of_one_model

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'p2pfl-aio[ray]'"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
        yield
        ray.shutdown()


pytestmark = pytest.mark.filterwarnings("default:::ray", "ignore::ResourceWarning", "ignore::FutureWarning")


@needs_ray
@pytest.mark.usefixtures("cluster")
class TestOnTwoWorkers:
    @check_compute
    async def test_conformance(self, check):
        await check(lambda: Ray(workers=2))

    async def test_many_jobs_give_the_bytes_of_inline(self):
        compute, jobs = Ray(workers=2), jobs_of_one_model(12)
        mindful = TrainSpec(momentum=0.5)
        jobs[0] = replace(jobs[0], spec=mindful, memory=torch.full_like(jobs[0].params, 0.1))
        evaluation = EvaluateJob(jobs[0].params, jobs[0].model, jobs[5].shard)
        *found, score = await compute.run_all([*jobs, evaluation])
        assert all(torch.equal(result.params, job().params) for result, job in zip(found, jobs, strict=True))
        assert torch.equal(found[0].memory, jobs[0]().memory) and found[1].memory is None
        assert score == evaluation()
        await compute.close()

    async def test_what_many_jobs_share_is_sent_once(self, monkeypatch):
        import ray

        compute, jobs, sent = Ray(workers=2), jobs_of_one_model(8), []
        put = ray.put
        monkeypatch.setattr(ray, "put", lambda thing: sent.append(type(thing).__name__) or put(thing))
        await compute.run_all(jobs)
        assert sorted(sent) == ["list", "ndarray", "tuple"], "one vector, one data set, one model"
        await compute.run_all(jobs)
        assert sorted(sent) == ["list", "ndarray", "ndarray", "tuple"]
        await compute.close()

    async def test_the_jobs_of_a_worker_that_dies_run_again(self, tmp_path):
        compute, jobs = Ray(workers=2), deadly_jobs(6, 3, tmp_path / "died")
        found = await compute.run_all(jobs)
        assert (tmp_path / "died").exists()
        assert all(torch.equal(result.params, job().params) for result, job in zip(found, jobs, strict=True))
        await compute.close()

    async def test_a_model_with_running_statistics_is_sent_with_each_weight_once(self, monkeypatch):
        import ray

        dataset, sizes = blobs(), []
        module = nn.Sequential(
            nn.Linear(2, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 300), nn.Linear(300, 3)
        )
        model = Model.of(module, nn.functional.cross_entropy, *dataset.batch(dataset.train_indices[:2]))
        job = FitJob(model.initial, model, dataset.train, TrainSpec(batch_size=4), 0, 0)
        put = ray.put

        def measured(thing):
            if isinstance(thing, tuple):
                sizes.append(len(ray.cloudpickle.dumps(thing)))
            return put(thing)

        monkeypatch.setattr(ray, "put", measured)
        compute = Ray(workers=1)
        found = await compute.run(job)
        assert torch.equal(found.params, job().params), "the model is as it was, here and there"
        assert sizes[0] < 1.1 * model.initial.nbytes + 20_000
        found.params.add_(1.0)  # a result is the caller's own
        await compute.close()

    async def test_errors_of_jobs_are_carried_over(self):
        compute, job = Ray(workers=1), fit_job()
        wrong = replace(job, spec=replace(job.spec, optimizer="SGD", optimizer_parameters={"speed": 3}))
        good, bad = await compute.run_all([job, wrong])
        assert good.steps > 0
        assert isinstance(bad, ConfigError)
        await compute.close()

    async def test_jobs_of_other_kinds_run_here(self):
        compute = Ray(workers=1)
        assert await compute.run(Call(os.getpid)) == os.getpid()
        await compute.close()

    def test_repr(self):
        assert repr(Ray(workers=2)) == "<Ray 2>"


@needs_ray
def test_a_count_that_cannot_be():
    with pytest.raises(ConfigError, match=r"--compute\.workers"):
        Ray(workers=-1)


def test_without_ray_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"pip install 'p2pfl-aio\[ray\]'"):
        Ray()
