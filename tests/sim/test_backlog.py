import asyncio
from dataclasses import dataclass, field

import pytest

from p2pfl.compute.inline import Inline
from p2pfl.compute.job import outcome
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec


@dataclass
class Job:
    examples: int
    name: str
    result_bytes: int = 0

    def __call__(self) -> str:
        return self.name


@dataclass
class Batches:
    """A compute that notes what it is given together, and when."""

    seen: list[tuple[float, list[str]]] = field(default_factory=list)
    parallel: int = 1

    async def run_all(self, jobs):
        self.seen.append((round(asyncio.get_running_loop().time(), 9), [job.name for job in jobs]))
        return [outcome(job) for job in jobs]


def device(backlog, speed=1.0):
    return Device(DeviceSpec(examples_per_second=speed), 0, 0, backlog)


async def started_at(seconds, backlog, job):
    await asyncio.sleep(seconds)
    result = await device(backlog).run(job)
    return asyncio.get_running_loop().time(), result


async def all_of(*work):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


async def test_what_is_under_way_when_the_first_is_through_is_computed_with_it():
    batches = Batches()
    backlog = Backlog(batches)
    found = await all_of(
        started_at(0, backlog, Job(10, "first")),
        started_at(3, backlog, Job(20, "meanwhile")),
        started_at(9, backlog, Job(5, "just before")),
        started_at(11, backlog, Job(1, "after")),
    )
    assert batches.seen == [(10, ["first", "just before", "meanwhile"]), (12, ["after"])]
    assert found == [(10, "first"), (23, "meanwhile"), (14, "just before"), (12, "after")]


async def test_what_begins_at_the_same_time_by_any_number_of_steps_is_computed_together():
    batches = Batches()
    backlog = Backlog(batches)

    async def late(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        return await device(backlog).run(Job(0, str(turns)))

    await all_of(*(late(turns) for turns in range(6)))
    assert batches.seen == [(0, ["0", "1", "2", "3", "4", "5"])]


async def test_what_is_given_up_is_never_computed():
    batches = Batches()
    backlog = Backlog(batches)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await device(backlog).run(Job(6, "slow"))
    assert await device(backlog).run(Job(6, "next")) == "next"
    assert batches.seen == [(11, ["next"])]


async def test_what_is_given_up_in_the_moment_when_it_is_through_holds_up_nobody():
    batches = Batches()
    backlog = Backlog(batches)
    task = asyncio.create_task(device(backlog).run(Job(5, "given up")))
    asyncio.get_running_loop().call_later(5, task.cancel)
    assert await device(backlog).run(Job(5, "stays")) == "stays"
    assert task.cancelled()


async def test_results_that_would_fill_the_memory_are_computed_when_those_before_have_been_used():
    batches = Batches()
    backlog = Backlog(batches)
    used = []

    async def one(name):
        used.append((await device(backlog).run(Job(3, name, 50 * 2**20)), len(batches.seen)))

    await all_of(*(one(name) for name in "abc"))
    assert [names for _, names in batches.seen] == [["a"], ["b"], ["c"]]
    assert used == [("a", 1), ("b", 2), ("c", 3)]


async def test_a_compute_that_fails_tells_all_who_wait():
    closed = Inline()
    await closed.close()
    backlog = Backlog(closed)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has been closed"):
            await device(backlog).run(Job(1, "lost"))


def test_repr():
    assert repr(Backlog(Inline())) == "<Backlog of 0 before <Inline>>"


async def test_a_compute_with_several_workers_gets_jobs_for_all_of_them_whatever_memory_they_take():
    batches = Batches(parallel=2)
    backlog = Backlog(batches)

    async def one(name):
        return await device(backlog).run(Job(3, name, 500 * 2**20))

    assert await all_of(*(one(name) for name in "abcdefgh")) == list("abcdefgh")
    assert [names for _, names in batches.seen] == [list("abcdef"), list("gh")]
