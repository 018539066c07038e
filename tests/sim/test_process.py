"""Processes of simulated nodes: whose task is whose, the end of all of them at once, wall clocks."""

from __future__ import annotations

import asyncio
import time

import pytest

from p2pfl.sim.process import Process, note_tasks, wall_clocks


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def test_tasks_belong_to_the_process_whose_code_has_made_them() -> None:
    loop = asyncio.get_running_loop()
    note_tasks(loop)
    one, other, ended = Process(), Process(), list[str]()
    tasks = []

    async def parent(name: str) -> None:
        tasks.append(asyncio.create_task(forever(ended, f"child of {name}")))
        await forever(ended, name)

    for process, name in ((one, "one"), (other, "other")):
        tasks.append(loop.create_task(parent(name), context=process.context))
    tasks.append(asyncio.create_task(forever(ended, "nobody's")))
    await asyncio.sleep(1)
    assert len(one.tasks) == len(other.tasks) == 2
    assert repr(one) == "<Process of 2 tasks>"
    one.kill()
    await asyncio.sleep(1)
    assert ended == ["one", "child of one"]
    assert not one.tasks and len(other.tasks) == 2
    assert repr(one) == "<Process of 0 tasks, killed>"
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_what_a_killed_process_begins_as_it_ends_ends_before_it_has_begun() -> None:
    loop = asyncio.get_running_loop()
    note_tasks(loop)
    process, done, born = Process(), list[str](), list[asyncio.Task[None]]()

    async def testament() -> None:
        done.append("written")

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            born.append(asyncio.create_task(testament()))

    work = loop.create_task(stubborn(), context=process.context)
    await asyncio.sleep(1)
    process.kill()
    await asyncio.sleep(1)
    assert work.cancelled() and born[0].cancelled() and not done


async def test_each_process_has_a_wall_clock_of_its_own_and_all_have_one_loop() -> None:
    loop = asyncio.get_running_loop()
    fast, slow = Process(3600.0), Process(-3600.0)

    async def read() -> tuple[float, float, float]:
        return time.time(), time.time_ns() / 1e9, loop.time()

    true = time.time
    with wall_clocks():
        ahead = await loop.create_task(read(), context=fast.context)
        behind = await loop.create_task(read(), context=slow.context)
        slow.wall_seconds = 0.0
        mended = await loop.create_task(read(), context=slow.context)
    assert time.time is true
    for clock in (0, 1):
        assert ahead[clock] - behind[clock] == pytest.approx(7200, abs=60)
        assert ahead[clock] - mended[clock] == pytest.approx(3600, abs=60)
    assert ahead[2] == behind[2]


async def test_outside_of_all_processes_there_is_none() -> None:
    assert Process.current() is None
    process = Process()
    assert process.context.run(Process.current) is process
