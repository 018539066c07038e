"""Every test of nodes also proves that no task is left, and that no exception went unseen."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect(1)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left
    assert not troubles
