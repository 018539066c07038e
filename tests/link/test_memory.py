"""In-process links: the conformance kit, then what only they do: delays, cuts, partitions, contexts, determinism."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from p2pfl.errors import ConfigError, LinkClosed, LinkRefused, LinkTruncated, ListenFailed, PeerUnreachable, UntrustedPeer
from p2pfl.link.base import Link
from p2pfl.link.memory import MemoryLink, MemoryNetwork
from p2pfl.wire.packet import Packet
from tests.link.kit import Check, Inbox, Pair, link_checks


async def linked(network: MemoryNetwork, a: str = "alice", b: str = "bob") -> tuple[MemoryLink, Link]:
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    door = await network.transport(b).listen("", accepted.put_nowait)
    near = await network.transport(a).dial(b)
    far = await accepted.get()
    await door.close()
    return near, far


def connector(**options: object):
    @asynccontextmanager
    async def connect() -> AsyncIterator[Pair]:
        network = MemoryNetwork(**options)
        near, far = await linked(network)
        yield Pair(near, far, lambda: network.cut("alice", "bob"), by_reference=True)

    return connect


@link_checks
async def test_conformance(check: Check) -> None:
    await check(connector())


@link_checks
async def test_conformance_with_delays_that_shrink(check: Check) -> None:
    delays = itertools.cycle([0.003, 0.002, 0.001, 0.0])
    await check(connector(delay=lambda source, destination, size: next(delays)))
