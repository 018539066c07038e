"""The virtual clock: time jumps, asyncio works as ever, threads hold it, a deadlock is named, runs repeat."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pfl.errors import CourseError
from p2pfl.sim.loop import Stalled, VirtualLoop, run_virtual


async def test_tests_run_on_virtual_time() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    before, wall = loop.time(), time.monotonic()
    await asyncio.sleep(1e6)
    assert loop.time() == before + 1e6
    assert time.monotonic() - wall < 1e5


@pytest.mark.sockets
async def test_tests_with_sockets_do_not() -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualLoop)


async def test_timers_fire_in_order_and_at_their_time() -> None:
    loop = asyncio.get_running_loop()
    start, fired = loop.time(), []
    for delay in (3.0, 0.1, 7200.0, 0.1 + 1e-6):
        loop.call_later(delay, lambda delay=delay: fired.append((delay, loop.time() - start)))
    await asyncio.sleep(7201)
    assert [delay for delay, _ in fired] == [0.1, 0.1 + 1e-6, 3.0, 7200.0]
    assert all(at == pytest.approx(delay, abs=1e-8) for delay, at in fired)


async def test_timers_fire_after_many_years() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(5):
        start = loop.time()
        await asyncio.sleep(1e8 / 3)
        assert loop.time() == pytest.approx(start + 1e8 / 3, rel=1e-12)
        await asyncio.sleep(1e-3)
        await asyncio.sleep(1e-9)


async def test_timeout_queue_and_taskgroup() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    queue: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for i in range(3):
            await asyncio.sleep(10)
            await queue.put(i)

    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        assert [await queue.get() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await queue.get()
    assert loop.time() - start == pytest.approx(90)


def test_a_deadlock_is_named() -> None:
    async def stuck_here() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("left", "right"):
                group.create_task(stuck_here(), name=name)

    with pytest.raises(Stalled, match=r"left in .*stuck_here \(test_loop.py:\d+\), right in .*stuck_here") as caught:
        run_virtual(main())
    assert isinstance(caught.value, CourseError)


def test_the_names_of_many_are_cut() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(asyncio.Event().wait())

    with pytest.raises(Stalled, match=r" and 96 more$"):
        run_virtual(main())


def test_what_a_deadlock_holds_is_cleaned_up() -> None:
    cleaned = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    with pytest.raises(Stalled):
        run_virtual(main())
    assert cleaned


def test_errors_and_results_pass() -> None:
    async def answer() -> int:
        await asyncio.sleep(3600)
        return 42

    async def fail() -> None:
        raise ValueError("no")

    assert run_virtual(answer()) == 42
    with pytest.raises(ValueError, match="no"):
        run_virtual(fail())


async def test_the_clock_stands_while_a_thread_computes() -> None:
    loop = asyncio.get_running_loop()
    start, seen = loop.time(), []
    timer = loop.call_later(1000, seen.append, "the timer came first")
    await loop.run_in_executor(None, time.sleep, 0.02)
    assert loop.time() == start
    assert not seen
    timer.cancel()


async def test_a_thread_that_fails_or_is_forgotten_lets_the_clock_go_on() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, lambda: 1 / 0)
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.02)
        ended.set()

    future = loop.run_in_executor(None, work)
    begun.wait()
    future.cancel()
    start = loop.time()
    await asyncio.sleep(5)
    assert loop.time() == start + 5
    assert ended.is_set()
    assert loop.computing == 0


async def test_the_executor_can_be_chosen() -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="chosen") as threads:
        assert (await loop.run_in_executor(threads, threading.current_thread)).name.startswith("chosen")
        loop.set_default_executor(threads)
        assert (await asyncio.to_thread(threading.current_thread)).name.startswith("chosen")


def test_a_job_that_cannot_be_started_is_not_counted() -> None:
    loop = VirtualLoop()
    assert loop.run_until_complete(loop.run_in_executor(None, int)) == 0
    loop.run_until_complete(loop.shutdown_default_executor())
    with pytest.raises(RuntimeError):
        loop.run_in_executor(None, time.sleep, 0)
    assert loop.computing == 0
    loop.close()


def test_two_runs_are_the_same() -> None:
    def trace(seed: int) -> list[tuple[float, int]]:
        rng, seen = random.Random(seed), []

        async def walk(i: int) -> None:
            for _ in range(20):
                await asyncio.sleep(rng.choice((0, 0, 0.1, rng.random())))
                seen.append((asyncio.get_running_loop().time(), i))

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                for i in range(20):
                    group.create_task(walk(i))

        run_virtual(main())
        return seen

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


async def test_when_idle_comes_after_all_that_is_ready_and_before_the_clock_moves():
    loop, seen = asyncio.get_running_loop(), []

    async def turns():
        for turn in range(4):
            seen.append(turn)
            await asyncio.sleep(0)

    loop.call_later(1, seen.append, "later")
    loop.when_idle(lambda: seen.append(("idle", loop.time())))
    await turns()
    await asyncio.sleep(2)
    assert seen == [0, 1, 2, 3, ("idle", 0.0), "later"]
