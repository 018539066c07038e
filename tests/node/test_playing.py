"""Roles side by side: to the end, to the first error, or until the stage is cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from p2pfl.node.playing import Stage
from tests.node.kit import steps


async def wait(seconds: float, error: Exception | None = None, *, at_the_end: bool = False) -> None:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if error is None or not at_the_end:
            raise
    if error is not None:
        raise error


def parts(*works: Coroutine[Any, Any, None]) -> dict[str, Coroutine[Any, Any, None]]:
    return {f"part {index}": work for index, work in enumerate(works)}


async def test_it_ends_with_the_last() -> None:
    start = asyncio.get_running_loop().time()
    await Stage().play(parts(wait(1), wait(5), wait(3)))
    assert asyncio.get_running_loop().time() - start == 5


async def test_the_first_error_is_raised_with_its_cause() -> None:
    error = KeyError("it")
    error.__cause__ = ValueError("because")
    stage = Stage()
    with pytest.raises(KeyError) as caught:
        await stage.play(parts(wait(9), wait(1, error), wait(9, OSError("after"), at_the_end=True)))
    assert caught.value is error
    assert isinstance(error.__cause__, ValueError)
    assert error.__notes__ == ["After it another role failed: OSError('after')"]
    assert not stage.clear()


async def test_to_clear_is_to_end_in_peace() -> None:
    stage = Stage()
    playing = asyncio.create_task(stage.play(parts(wait(9), wait(9))))
    await asyncio.sleep(1)
    assert len(stage.clear()) == 2
    await steps()
    assert playing.done()
    assert playing.exception() is None


async def test_an_error_on_the_way_out_is_not_lost() -> None:
    stage = Stage()
    playing = asyncio.create_task(stage.play(parts(wait(9, OSError("late"), at_the_end=True))))
    await asyncio.sleep(1)
    stage.clear()
    with pytest.raises(OSError, match="late"):
        await playing
