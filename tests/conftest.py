"""Async tests run on virtual time, except those that use real sockets, which run one after the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest

from p2pfl.sim.loop import VirtualLoop

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's default, a thread for each core, makes small models slow


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The one loop that an async test runs on. pytest-asyncio wants a mapping from each hook, never None."""
    if item.get_closest_marker("sockets"):
        return {"stock": asyncio.SelectorEventLoop}
    return {"virtual": VirtualLoop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with real sockets wait for real time: two at once would make each other late. So one worker has them all.

    `sockets(patient=True)` is for those that can bear it.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        marker = item.get_closest_marker("sockets")
        if marker is not None and not marker.kwargs.get("patient"):
            item.add_marker(pytest.mark.xdist_group("sockets"))
