"""Where training runs, by name: options of the command line, and what they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2pfl.compute.cluster import Ray
from p2pfl.compute.cohort import Cohort
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import Compute
from p2pfl.compute.processes import Processes
from p2pfl.compute.threads import Threads
from p2pfl.errors import require
from p2pfl.learn.lookup import unknown

__all__ = ["COMPUTES", "ComputeOptions", "make_compute"]


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where training runs. Results are the same everywhere."""

    name: str = "auto"
    """`auto`, `inline` (one job after the other), `cohort` (jobs that are pending together as one batch), `threads`,
    `processes` (this machine's CPUs), `ray` (a cluster). auto: cohort in a simulation, threads on a host. `--compute
    NAME` for short."""
    workers: int = 0
    """threads, processes, ray: how many; 0: one thread, or as many as there are CPUs."""
    address: str = ""
    """ray: where the cluster is, such as auto or ray://host:10001; empty: one on this machine."""

    def __post_init__(self) -> None:
        require(self.workers >= 0, f"--compute.workers is {self.workers}; it must not be negative")
        single = self.name in ("inline", "cohort")
        require(not (single and self.workers), f"--compute.workers is for threads, processes and ray, not {self.name}")
        elsewhere = f"--compute.address is for ray, not {self.name}; add --compute ray"
        require(not self.address or self.name == "ray", elsewhere)


COMPUTES: Mapping[str, Callable[[ComputeOptions], Compute]] = {
    "inline": lambda options: Inline(),
    "cohort": lambda options: Cohort(),
    "threads": lambda options: Threads(options.workers or 1),
    "processes": lambda options: Processes(options.workers),
    "ray": lambda options: Ray(options.address, options.workers),
}


def make_compute(options: ComputeOptions, auto: str) -> Compute:
    """`auto`: the name that auto stands for. Raises ConfigError for a name that is none."""
    name = auto if options.name == "auto" else options.name
    if name not in COMPUTES:
        raise unknown("--compute", name, ("auto", *COMPUTES))
    return COMPUTES[name](options)
