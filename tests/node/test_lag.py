"""The lag of a loop that stalls when told to: virtual time, so every figure is exact."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.node.lag import LoopLag
from p2pfl.sim.loop import VirtualLoop, run_virtual


def stall(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.advance(seconds)


async def test_a_loop_that_is_never_blocked_has_no_lag() -> None:
    with LoopLag() as lag:
        await asyncio.sleep(1000)
        assert lag.longest() == pytest.approx(0, abs=1e-9)


async def test_a_stall_is_told_until_the_window_is_over() -> None:
    with LoopLag(0.25, window_seconds=60) as lag:
        await asyncio.sleep(10.1)
        stall(3)  # the timer was due in 0.15 s
        await asyncio.sleep(0)
        assert lag.longest() == pytest.approx(2.85)
        await asyncio.sleep(20)
        assert lag.longest() == pytest.approx(2.85)
        assert lag.longest(15) == pytest.approx(0, abs=1e-9)
        await asyncio.sleep(41)
        assert lag.longest() == pytest.approx(0, abs=1e-9)


async def test_a_timer_that_is_overdue_counts_before_it_is_called() -> None:
    with LoopLag(0.25) as lag:
        stall(3)
        assert lag.longest() == pytest.approx(2.75)  # nothing has run in between


async def test_afterwards_nothing_is_left_running() -> None:
    with LoopLag() as lag:
        await asyncio.sleep(1)
    stall(100)
    await asyncio.sleep(1)
    assert lag.longest() == pytest.approx(0, abs=1e-9)
    assert lag._timer is None
    assert repr(lag) == "<LoopLag: every 0.25 s, over 60 s>"


@given(st.lists(st.floats(0, 20).map(lambda seconds: round(seconds, 2)), max_size=30), st.floats(1, 40))
def test_it_is_the_maximum_over_the_window(stalls: list[float], seconds: float) -> None:
    """Against the definition, over all delays that there were."""

    async def play() -> None:
        loop, delays, window = asyncio.get_running_loop(), [], 30.0
        with LoopLag(0.25, window) as lag:
            for length in stalls:
                assert lag._timer is not None
                due = lag._timer.when()
                stall(length)
                if loop.time() >= due:
                    delays.append((loop.time(), loop.time() - due))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                last = loop.time() - min(seconds, window)
                assert lag.longest(seconds) == max((delay for ended, delay in delays if ended >= last), default=0.0)

    run_virtual(play())
