"""WebSocket links over real sockets of this host: the conformance kit, every limit, and what hostile ends do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from p2pfl.crypto.identity import Identity
from p2pfl.link.base import Link
from p2pfl.link.sealed import SealedLink
from p2pfl.link.trust import Open
from p2pfl.link.websocket import WebSocketTransport
from p2pfl.wire.packet import Packet
from tests.link.kit import Check, Inbox, Pair, link_checks, pattern

pytestmark = pytest.mark.sockets

ALICE = Identity.from_seed(bytes([1]) * 32)
BOB = Identity.from_seed(bytes([2]) * 32)


def transport(identity: Identity = ALICE, **options: object) -> WebSocketTransport:
    return WebSocketTransport(identity, trust=options.pop("trust", Open()), **options)


@asynccontextmanager
async def linked(near: WebSocketTransport, far: WebSocketTransport) -> AsyncIterator[tuple[SealedLink, SealedLink]]:
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await far.listen("0", accepted.put_nowait)
    try:
        a = await near.dial(listener.addresses[0])
        b = await accepted.get()
        try:
            yield a, b
        finally:
            for link in (a, b):
                await link.close()
    finally:
        await listener.close()


@asynccontextmanager
async def dialler_first() -> AsyncIterator[Pair]:
    async with linked(transport(ALICE), transport(BOB)) as (a, b):
        yield Pair(a, b, a._socket.transport.abort)


@link_checks
async def test_conformance(check: Check) -> None:
    await check(dialler_first)
