import asyncio
import math
from dataclasses import dataclass
from statistics import median, pstdev

import pytest

from p2pfl.compute.inline import Inline
from p2pfl.compute.threads import Threads
from p2pfl.errors import ConfigError
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec
from p2pfl.sim.loop import run_virtual


@dataclass
class Job:
    """Costs so many examples, and gives its name."""

    examples: int
    name: str = ""
    error: Exception | None = None
    result_bytes: int = 0

    def __call__(self) -> str:
        if self.error:
            raise self.error
        return self.name


def device(seat=0, backlog=None, seed=0, coordinates=False, **spec):
    return Device(DeviceSpec(**spec), seed, seat, backlog or Backlog(Inline()), coordinates=coordinates)


async def test_a_job_takes_the_time_that_its_examples_cost():
    loop = asyncio.get_running_loop()
    slow = device(examples_per_second=10.0)
    assert await slow.run(Job(25, "done")) == "done"
    assert loop.time() == pytest.approx(2.5)
    await slow.run(Job(0))
    assert loop.time() == pytest.approx(2.5)


async def test_a_job_that_fails_does_so_when_the_device_is_through():
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="broken"):
        await device().run(Job(10**4, error=ValueError("broken")))
    assert loop.time() == 2


async def test_a_job_that_is_cancelled_leaves_no_timer():
    task = asyncio.create_task(device().run(Job(10**9)))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert all(handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)


def order_of(compute):
    """The order in which equal devices that began at one time go on."""
    ended, backlog = [], Backlog(compute)

    async def work(seat):
        ended.append(await device(seat, backlog).run(Job(100, str(seat))))

    async def all_at_once():
        async with asyncio.TaskGroup() as group:
            for seat in range(20):
                group.create_task(work(seat))
        await compute.close()

    run_virtual(all_at_once())
    return ended


def test_the_order_of_devices_that_are_through_at_one_time_is_not_that_of_threads():
    wanted = order_of(Inline())
    assert sorted(wanted, key=int) == [str(seat) for seat in range(20)]
    for _ in range(5):
        assert order_of(Threads(3)) == wanted


def test_speeds_are_drawn_from_the_seed_and_the_seat():
    speeds = [device(seat, spread=0.5).examples_per_second for seat in range(400)]
    assert speeds == [device(seat, spread=0.5).examples_per_second for seat in range(400)]
    assert speeds[0] != device(0, seed=1, spread=0.5).examples_per_second
    assert median(speeds) == pytest.approx(5000, rel=0.1)
    assert pstdev(map(math.log, speeds)) == pytest.approx(0.5, rel=0.1)
    assert {device(seat).examples_per_second for seat in range(9)} == {5000.0}


def test_stragglers_are_a_share_of_the_devices_and_slower_by_a_factor():
    speeds = [device(seat, stragglers=0.25, straggler_factor=4.0).examples_per_second for seat in range(400)]
    assert set(speeds) == {5000.0, 1250.0}
    assert speeds.count(1250.0) / 400 == pytest.approx(0.25, abs=0.06)
    assert {device(seat, stragglers=1.0).examples_per_second for seat in range(9)} == {500.0}


def test_coordinators_have_a_speed_of_their_own():
    found = device(coordinates=True, coordinator_examples_per_second=7.0, spread=1.0, stragglers=1.0)
    assert found.examples_per_second == 7.0


async def test_closing_one_device_does_not_close_the_compute_of_all():
    backlog = Backlog(Inline())
    first, second = device(0, backlog), device(1, backlog)
    await first.close()
    assert await second.run(Job(1, "done")) == "done"


def test_repr():
    assert repr(device(examples_per_second=1234.5)) == "<Device 1234 examples/s>"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("examples_per_second", "straggler_factor", "coordinator_examples_per_second")
          for value in (0, -1, math.nan, math.inf)),
        ("spread", -1), ("spread", math.nan), ("stragglers", 1.5), ("stragglers", -0.1),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^devices\.{field} is {value}; it must "):
        DeviceSpec(**{field: value})
