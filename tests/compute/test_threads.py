import asyncio
import gc
import threading
import weakref

import pytest

from p2pfl.compute.threads import Threads
from tests.compute.kit import Call, Gate


async def begun(gate):
    """Wait on a thread until the job has begun."""
    watch = Threads()
    assert await watch.run(Call(lambda: gate.begun.wait(20)))
    await watch.close()


async def test_the_loop_stays_free_while_a_job_runs():
    threads, gate = Threads(), Gate()
    job = asyncio.create_task(threads.run(gate))
    await begun(gate)
    turns = 0
    for _ in range(100):
        await asyncio.sleep(0)
        turns += not job.done()
    assert turns == 100
    gate.let.set()
    assert await job == "through"
    await threads.close()


async def test_a_virtual_clock_stands_while_a_job_runs():
    loop, threads, gate = asyncio.get_running_loop(), Threads(), Gate()
    timer = loop.call_later(1000, lambda: None)
    job = asyncio.create_task(threads.run(gate))
    await asyncio.sleep(0)
    threading.Timer(0.01, gate.let.set).start()
    await job
    assert loop.time() == 0
    timer.cancel()
    await threads.close()


async def test_jobs_run_side_by_side():
    threads, first, second = Threads(2), Gate(), Gate()
    async with asyncio.TaskGroup() as group:
        for gate in (first, second):
            group.create_task(threads.run(gate))
        for gate in (first, second):
            await begun(gate)
        first.let.set()
        second.let.set()
    await threads.close()


async def test_a_job_that_was_cancelled_before_its_turn_is_never_begun():
    threads, gate, ran = Threads(), Gate(), []
    running = asyncio.create_task(threads.run(gate))
    waiting = asyncio.create_task(threads.run(Call(lambda: ran.append(1))))
    await begun(gate)
    waiting.cancel()
    gate.let.set()
    await running
    assert await threads.run(Call(lambda: "next")) == "next"
    assert not ran
    await threads.close()


async def test_a_job_that_exits_does_not_take_its_worker_along():
    threads = Threads()

    def leave():
        raise KeyboardInterrupt

    outcome = threads._workers.submit(leave)
    with pytest.raises(KeyboardInterrupt):
        outcome.result(20)
    assert await threads.run(Call(lambda: 7)) == 7
    await threads.close()


async def test_an_idle_worker_holds_nothing_of_its_last_job():
    class Large:
        pass

    threads, large = Threads(), Large()
    ghost = weakref.ref(large)
    await threads.run(Call(lambda held=large: held is None))
    await threads.run(Call(lambda: None))  # by then the worker has let go of the first
    del large
    gc.collect()
    assert ghost() is None
    await threads.close()


async def test_close_ends_the_workers_and_the_process_never_waits_for_them():
    threads = Threads(2)
    assert all(thread.daemon for thread in threads._workers.threads)
    await threads.close()
    threads._workers.shutdown(wait=True)
    assert not any(thread.is_alive() for thread in threads._workers.threads)


def test_repr():
    assert repr(Threads(2)) == "<Threads 2>"
