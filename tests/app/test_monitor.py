"""The pages of a node: when it is well and when not, on its own port and on another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from p2pfl.app.monitor import STUCK_SECONDS, Monitor, MonitorOptions
from p2pfl.errors import ConfigError, CourseError, ListenFailed
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import RoundStarted
from p2pfl.node.node import Node
from tests.node.kit import linked, make


def health(monitor: Monitor) -> tuple[int, dict[str, Any]]:
    page = monitor.pages.makers["/healthz"]()
    assert page.content_type == "application/json"
    return page.status, orjson.loads(page.body)


def status(monitor: Monitor) -> tuple[int, str]:
    code, said = health(monitor)
    return code, said["status"]


@asynccontextmanager
async def watched(options: MonitorOptions | None = None) -> AsyncIterator[Monitor]:
    node = make(MemoryNetwork(), "a", seat=3)
    async with Monitor(node, options or MonitorOptions()) as monitor, node:
        yield monitor


async def test_health_says_where_the_node_stands() -> None:
    async with linked() as (a, _), Monitor(a, MonitorOptions()) as monitor, monitor.up():
        await a.members.announce(seat=3)
        a.emit(RoundStarted(7, 1))
        with a.waiting("spring"):
            await asyncio.sleep(12)
            code, said = health(monitor)
        assert code == 200
        assert said == {
            "status": "ok", "reason": "", "node": "a", "name": "a", "seat": 3, "round": 7, "peers": 1,
            "event_loop_lag_seconds": 0.0, "waiting": [{"for": "spring", "seconds": 12.0}],
        }  # fmt: skip


async def test_before_and_after_its_time_a_node_is_not_well() -> None:
    async with watched() as monitor:
        assert status(monitor) == (503, "starting")
        async with monitor.up():
            assert status(monitor) == (200, "ok")
        assert status(monitor) == (503, "stopping")
        assert repr(monitor) == "<Monitor of a: stopping>"


async def test_a_course_that_fails_says_of_what() -> None:
    async with watched() as monitor:
        with pytest.raises(CourseError):
            async with monitor.up():
                raise CourseError("no update came")
        code, said = health(monitor)
        assert (code, said["status"], said["reason"]) == (503, "failed", "no update came")


async def test_to_be_stopped_is_no_failure() -> None:
    async with watched() as monitor:

        async def serve() -> None:
            async with monitor.up():
                await asyncio.Event().wait()

        serving = asyncio.create_task(serve())
        await asyncio.sleep(1)
        serving.cancel()
        await asyncio.wait((serving,))
        assert status(monitor) == (503, "stopping")


async def test_a_loop_that_was_stuck_is_not_well_for_a_while() -> None:
    loop: Any = asyncio.get_running_loop()
    async with watched() as monitor, monitor.up():
        loop.advance(STUCK_SECONDS)
        assert status(monitor) == (200, "ok")  # its timer was to come later
        loop.advance(1)
        await asyncio.sleep(0)
        assert status(monitor) == (503, "stuck")
        await asyncio.sleep(20)
        assert status(monitor) == (200, "ok")


async def test_metrics_are_a_page() -> None:
    async with watched() as monitor:
        page = monitor.pages.makers["/metrics"]()
        assert page.status == 200
        assert b"\np2pfl_seat 3.0\n" in page.body
        assert set(monitor.pages.makers) == {"/healthz", "/metrics"}


@pytest.mark.parametrize("address", ["http://localhost:9400", "9400/metrics", "hub", ":x"])
async def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Monitor(make(MemoryNetwork(), "a"), MonitorOptions(metrics_listen=address))
    assert "\n" not in str(caught.value)
    assert repr(address) in str(caught.value)


async def test_only_who_asks_for_it_is_read_by_others() -> None:
    for public in (False, True):
        node = make(MemoryNetwork(), "a")
        assert Monitor(node, MonitorOptions(metrics_open=public)).pages.public is public


@pytest.mark.sockets
@pytest.mark.parametrize(("listen", "host_of_another", "seen"), [(":0", "hub", 404), ("0.0.0.0:0", "hub", 200)])
async def test_a_port_of_its_own_for_a_node_that_dials_out(listen: str, host_of_another: str, seen: int) -> None:
    async with Node() as node, Monitor(node, MonitorOptions(metrics_listen=listen)) as monitor, monitor.up():
        url = f"http://127.0.0.1:{monitor.where.rpartition(':')[2]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/healthz") as response:
                assert (response.status, (await response.json())["node"]) == (200, node.id)
            async with session.get(f"{url}/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=")
                assert "p2pfl_node_info" in await response.text()
            async with session.get(f"{url}/healthz", headers={"Host": host_of_another}) as response:
                assert response.status == seen
        taken = Monitor(node, MonitorOptions(metrics_listen=monitor.where.removeprefix("http://")))
        with pytest.raises(ListenFailed, match="Address already in use"):
            await taken.__aenter__()
