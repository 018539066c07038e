"""How long a device computes: jobs are charged the time that the modelled device would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from p2pfl.compute.job import Job
from p2pfl.errors import require
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.draws import lognormal, uniform

__all__ = ["Device", "DeviceSpec"]

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The table [devices] of a course file; it is for simulation only."""

    examples_per_second: float = 5000.0
    """Training examples that the median device gets through in a second."""
    spread: float = 0.0
    """Deviation of the logarithm of the devices' speeds; 0: all are alike."""
    stragglers: float = 0.0
    """Share of the devices that are slower by `straggler_factor`."""
    straggler_factor: float = 10.0
    coordinator_examples_per_second: float = 5000.0
    """The same for nodes that hold no examples, such as a server that evaluates. They are no stragglers."""

    def __post_init__(self) -> None:
        for name in ("examples_per_second", "straggler_factor", "coordinator_examples_per_second"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"devices.{name} is {value}; it must be a number above 0")
        require(0 <= self.spread < math.inf, f"devices.spread is {self.spread}; it must not be negative")
        require(0 <= self.stragglers <= 1, f"devices.stragglers is {self.stragglers}; it must lie between 0 and 1")


class Device:
    """The compute of one simulated node: `backlog` does the work, `spec` says how long it takes."""

    def __init__(self, spec: DeviceSpec, seed: int, seat: int, backlog: Backlog, *, coordinates: bool = False) -> None:
        if coordinates:
            self.examples_per_second = spec.coordinator_examples_per_second
        else:
            self.examples_per_second = spec.examples_per_second * lognormal(spec.spread, seed, "speed", seat)
            if uniform(seed, "straggler", seat) < spec.stragglers:
                self.examples_per_second /= spec.straggler_factor
        self._backlog = backlog
        self.busy = 0  # jobs that it has not got through
        self._closed = False

    @property
    def parallel(self) -> int:
        return 1

    async def run(self, job: Job[ResultT]) -> ResultT:
        """The job's result, as late as this device has it."""
        outcome = await self._result(job)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        """The results, one after the other, once the device is through with all."""
        return [await self._result(job) for job in jobs]

    async def _result(self, job: Job[ResultT]) -> ResultT | Exception:
        if self._closed:
            raise RuntimeError("this device has been closed")
        begun = self._backlog.begin(job, job.examples / self.examples_per_second)
        self.busy += 1
        try:
            outcome: ResultT | Exception = await begun.answer
        finally:
            self.busy -= 1
            self._backlog.drop(begun)
        return outcome

    async def close(self) -> None:
        """This device takes no more jobs. The compute behind it belongs to all devices, and stays open."""
        self._closed = True

    def __repr__(self) -> str:
        return f"<Device {self.examples_per_second:.0f} examples/s>"
