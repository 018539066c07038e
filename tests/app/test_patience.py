"""Who gives up, and when."""

from __future__ import annotations

import asyncio

import pytest

from p2pfl.app.patience import patience
from p2pfl.errors import PeersLost
from p2pfl.link.memory import MemoryNetwork
from tests.node.kit import QUIET, make, until


async def test_who_hears_of_nobody_gives_up_in_the_end() -> None:
    network, loop = MemoryNetwork(), asyncio.get_running_loop()
    async with make(network, "hub", settings=QUIET), make(network, "a", peers=["hub"], settings=QUIET) as node:
        with pytest.raises(PeersLost, match="no link to any node of the course for 60 s"):
            async with patience(node, 60, resuming=False):
                await until(lambda: bool(node.peers))
                await asyncio.sleep(1000)  # linked: there is no hurry
                network.take_offline("hub")
                since = loop.time()
                await asyncio.Event().wait()
        assert loop.time() - since == pytest.approx(60)


async def test_who_comes_back_in_time_ends_the_hurry() -> None:
    network = MemoryNetwork()
    async with make(network, "hub", settings=QUIET), make(network, "a", peers=["hub"], settings=QUIET) as node:
        async with patience(node, 60, resuming=False):
            await until(lambda: bool(node.peers))
            network.take_offline("hub")
            await asyncio.sleep(20)
            network.bring_online("hub")
            await asyncio.sleep(1000)
        assert node.peers
        network.take_offline("hub")  # it is over: this is nothing to it
        await asyncio.sleep(1000)


@pytest.mark.parametrize(("seconds", "resuming", "gives_up"), [(60, True, True), (60, False, False), (0, True, False)])
async def test_before_the_first_link_only_who_goes_on_with_a_run_gives_up(
    seconds: float, resuming: bool, gives_up: bool
) -> None:
    async def alone() -> None:
        async with make(MemoryNetwork(), "a", settings=QUIET) as node, patience(node, seconds, resuming=resuming):
            await asyncio.sleep(1000)

    if gives_up:
        with pytest.raises(PeersLost):
            await alone()
    else:
        await alone()


async def test_another_timeout_is_not_ours() -> None:
    async with make(MemoryNetwork(), "a", settings=QUIET) as node:
        with pytest.raises(TimeoutError):
            async with patience(node, 60, resuming=True):
                raise TimeoutError
