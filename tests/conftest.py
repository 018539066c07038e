"""Async tests run on virtual time, except those that use real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from p2pfl.sim.loop import VirtualLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The one loop that an async test runs on. pytest-asyncio wants a mapping from each hook, never None."""
    if item.get_closest_marker("sockets"):
        return {"stock": asyncio.SelectorEventLoop}
    return {"virtual": VirtualLoop}
