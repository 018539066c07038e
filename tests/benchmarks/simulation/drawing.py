"""Drawing the work of a scenario: data by numpy, all else by p2pfl in a run in which nobody trains.

So nothing is assumed here of how p2pfl draws clients and their examples, but for one line: the order of batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.compute.job import FitJob, Job, alone
from p2pfl.learn.files import read_npz
from p2pfl.learn.train import FitResult
from p2pfl.sim.network import NetworkSpec
from tests.benchmarks.simulation.workload import Scenario

__all__ = ["draw"]

SEED = 1
DIGITS = Path(__file__).parents[3] / "p2pfl/learn/digits.npz"


def draw(scenario: Scenario, folder: Path) -> None:
    """Lay the work down in a folder that exists, for `Work.read`."""
    np.savez(folder / "data.npz", **(_real(scenario) if scenario.digits else _random(scenario)))
    course = _course(scenario, folder / "data.npz")
    (folder / "course.json").write_bytes(msgspec.json.encode(course))
    (folder / "scenario.json").write_bytes(msgspec.json.encode(asdict(scenario)))
    save_file(_tensors(scenario, course), folder / "work.safetensors")


def _course(scenario: Scenario, data: Path) -> dict[str, Any]:
    """As a user of p2pfl writes it. Nobody else models a network: this one is at once and without bounds."""
    return {
        "seed": SEED,
        "course": {
            "name": "fedavg",
            "rounds": scenario.rounds + 1,
            "fraction": scenario.cohort / scenario.clients,
            "evaluate": "none",
        },
        "topology": {"n": scenario.clients + 1},
        "data": {"source": str(data)},
        "partition": {"scheme": scenario.partition, "examples_per_client": scenario.examples},
        "model": {"name": scenario.model, "hidden": scenario.hidden},
        "train": {"epochs": scenario.epochs, "batch_size": scenario.batch, "lr": scenario.lr},
        "network": {each.name: 0.0 for each in fields(NetworkSpec)},
    }


class Recorder:
    """A compute that trains nobody, and keeps the jobs that it is given."""

    parallel = 1

    def __init__(self) -> None:
        self.jobs: list[FitJob] = []

    async def run(self, job: Job[Any]) -> Any:
        return await alone(self, job)

    async def run_all(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        return [self._keep(job) for job in jobs]

    async def close(self) -> None:
        return None

    def _keep(self, job: Job[Any]) -> FitResult:
        assert isinstance(job, FitJob), "nothing is evaluated"
        self.jobs.append(job)
        return FitResult(job.params, len(job.shard), 0.0, 0)


def _tensors(scenario: Scenario, course: Mapping[str, Any]) -> dict[str, Tensor]:
    setup, recorder = prepare(from_mapping(course)), Recorder()
    simulate(setup, recorder)
    plan = torch.stack([_order(job) for job in sorted(recorder.jobs, key=lambda job: job.round)])
    test_x, test_y = setup.dataset.batch(setup.dataset.test_indices)
    names = [entry.name for entry in setup.model.layout.entries]
    initial = zip(names, setup.model.layout.views(setup.model.initial), strict=True)
    return {
        "x": setup.dataset.x,
        "y": setup.dataset.y,
        "test_x": test_x,
        "test_y": test_y,
        "plan": plan.reshape(scenario.rounds + 1, scenario.cohort, -1, scenario.batch),
        **{f"initial.{name}": weight.contiguous() for name, weight in initial},
    }


def _order(job: FitJob) -> Tensor:
    """The rows of all batches of a client, in the order in which `fit` draws them."""
    generator = torch.Generator().manual_seed(job.seed)
    rows = job.shard.indices
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(job.spec.epochs)])


def _real(scenario: Scenario) -> dict[str, Any]:
    """The 1,797 digits: some to test with, the others for training."""
    found = read_npz(DIGITS)
    order = np.random.default_rng(SEED).permutation(len(found["y"]))
    x, y = (found["x"].astype(np.float32) / 16).reshape(-1, *scenario.shape)[order], found["y"].astype(np.int64)[order]
    train = len(y) - scenario.test_examples
    return {"x": x[:train], "y": y[:train], "x_test": x[train:], "y_test": y[train:]}


def _random(scenario: Scenario) -> dict[str, Any]:
    """A random image for each class, and noise upon it."""
    rng = np.random.default_rng(SEED)
    train, test = scenario.clients * scenario.examples, scenario.test_examples
    y = np.concatenate([rng.permutation(np.arange(rows) % scenario.classes) for rows in (train, test)])
    x = rng.normal(size=(train + test, *scenario.shape)) + rng.normal(size=(scenario.classes, *scenario.shape))[y]
    x = (0.25 * x).astype(np.float32)
    return {"x": x[:train], "y": y[:train], "x_test": x[train:], "y_test": y[train:]}
