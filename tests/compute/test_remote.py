"""Jobs over workers that may die: parcels, second chances, and who is given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pfl.compute.remote import Portable, Remote, parcel
from p2pfl.errors import ComputeError
from tests.compute.kit import Call, check_compute, fit_job


class Mortal(Remote):
    """Two workers, in this process. `deaths` says of which jobs, by seed, a worker dies, and how often."""

    def __init__(self, deaths: Mapping[int, int] | None = None) -> None:
        super().__init__()
        self.deaths = dict(deaths or {})
        self.dismissed = 0

    async def _attempt(self, jobs: Mapping[int, Portable], found: dict[int, Any], most: int) -> Sequence[int]:
        left, lost, workers = deque(jobs.items()), [], 2
        while left and workers:
            taken = parcel(left, 2, most)
            deadly = [job.seed for job in taken.values() if self.deaths.get(getattr(job, "seed", -1), 0) > 0]
            if deadly:
                self.deaths[deadly[0]] -= 1
                lost.extend(taken)
                workers -= 1
                continue
            for at, job in taken.items():
                found[at] = await self._on_thread(job)
        return lost

    def _dismiss(self) -> None:
        self.dismissed += 1


@check_compute
async def test_conformance(check):
    await check(Mortal)


@given(st.integers(0, 200), st.integers(1, 8), st.integers(1, 50))
def test_parcels_hold_every_job_once_and_no_more_than_are_wanted(count, workers, most):
    left = deque((at, fit_job) for at in range(count))
    parcels = []
    while taken := parcel(left, workers, most):
        parcels.append(taken)
    assert [at for taken in parcels for at in taken] == list(range(count))
    assert all(len(taken) <= most for taken in parcels)
    if count >= workers and most == 50:
        assert len(parcels) >= workers


async def test_who_killed_a_worker_once_gets_a_result():
    compute = Mortal({3: 1, 7: 1})
    found = await compute.run_all([fit_job(seed) for seed in range(12)])
    assert all(result.steps > 0 for result in found)
    await compute.close()


async def test_who_kills_two_workers_is_given_up_and_nobody_else():
    compute = Mortal({3: 9, 7: 9, 8: 9, 11: 9})
    found = await compute.run_all([*(fit_job(seed) for seed in range(12)), Call(lambda: "here")])
    assert [at for at, result in enumerate(found) if isinstance(result, ComputeError)] == [3, 7, 8, 11]
    assert found[-1] == "here"
    assert all(found[at].steps > 0 for at in range(12) if at not in (3, 7, 8, 11))
    await compute.close()
