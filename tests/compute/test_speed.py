"""How much is trained in the time that there is: on a device of known speed, and on one that is measured."""

import asyncio
from dataclasses import dataclass, field

import pytest
import torch

from p2pfl.compute.inline import Inline
from p2pfl.compute.job import FitJob
from p2pfl.compute.speed import Speed
from p2pfl.learn.train import FitResult
from tests.compute.kit import fit_job

BATCH, EXAMPLES = 4, 24


@dataclass
class Slow(Inline):
    """Takes a tenth of a second for each example, and half a second for each job."""

    examples_per_second: float | None = None
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    async def run(self, job: FitJob) -> FitResult:
        await asyncio.sleep(0.5 + job.examples / 10)
        found = await super().run(job)
        self.steps.append(found.steps)
        return found


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"epochs": 5, "within_seconds": 3.0}, 7),  # 30 examples
        ({"epochs": 5, "within_seconds": 0.01}, 1),
        ({"epochs": 5, "within_seconds": 99.0}, 30),  # all of it
        ({"steps": 3, "within_seconds": 3.0}, 3),
        ({"steps": 90, "within_seconds": 3.0}, 7),
        ({"epochs": 5, "within_seconds": 3.0, "sam_rho": 0.1}, 3),  # each costs twice as much
    ],
)
async def test_what_a_device_of_known_speed_gets_through(train: dict[str, float], steps: int) -> None:
    job = fit_job(**train)
    device = Slow(examples_per_second=10.0)
    found = await Speed().run(device, job)
    assert device.steps == [found.steps] == [steps]
    assert torch.equal(found.params, fit_job(**{**train, "epochs": 1, "steps": steps})().params)


async def test_where_the_speed_is_not_known_a_first_batch_tells() -> None:
    device, speed, job = Slow(), Speed(), fit_job(epochs=9, within_seconds=6.0)
    for _ in range(6):
        await speed.run(device, job)
    first, *rest = device.steps
    assert first == 1
    assert rest == sorted(rest) and rest[-1] == 13  # (6 - 0.5) / 0.4 batches are what the time is enough for
    assert speed.examples_per_second == pytest.approx(13 * BATCH / (0.5 + 13 * BATCH / 10))
    assert repr(speed) == f"<Speed {speed.examples_per_second} examples/s>"


async def test_where_training_takes_no_time_all_of_it_is_done() -> None:
    found = await Speed().run(Inline(), fit_job(epochs=5, within_seconds=0.001))
    assert found.steps == 5 * EXAMPLES // BATCH
