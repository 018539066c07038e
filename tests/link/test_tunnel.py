"""Ends of tunnels: order, windows, ends; and the conformance kit over links upon them."""

from __future__ import annotations

import asyncio
import doctest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import HandshakeFailed, LinkError, LinkRefused, LinkTruncated
from p2pfl.link import tunnel as module
from p2pfl.link.base import CloseCode, MessageSocket
from p2pfl.link.channel import MAX_RECORDS, RECORD_OVERHEAD
from p2pfl.link.handshaking import TunnelLink, greet, return_greeting
from p2pfl.link.sealed import BATCH_BYTES
from p2pfl.link.tunnel import MAX_CARRIED, MESSAGE_COST, TunnelSocket, cost
from p2pfl.wire.frame import MAX_RECORD
from p2pfl.wire.packet import Packet
from tests.link.carrying import ALICE, BOB, LIMITS, RELAY, Line, security, tunnel
from tests.link.kit import Check, Inbox, Pair, link_checks


def test_docstrings() -> None:
    assert doctest.testmod(module).failed == 0


def test_what_a_sealed_link_sends_at_once_can_be_carried() -> None:
    assert BATCH_BYTES - 1 + MAX_RECORD + MAX_RECORDS * RECORD_OVERHEAD <= MAX_CARRIED


@asynccontextmanager
async def connect() -> AsyncIterator[Pair]:
    near, far, out, _ = tunnel()
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(greet(near, security(ALICE), LIMITS, BOB.peer_id))
        called = group.create_task(return_greeting(far, security(BOB), LIMITS, ALICE.peer_id))
    ends = [TunnelLink(near, RELAY, calling.result(), LIMITS), TunnelLink(far, RELAY, called.result(), LIMITS)]

    def cut() -> None:
        out.down = True
        for socket in (near, far):
            socket.ended(LinkTruncated("who carried it is gone"))

    try:
        yield Pair(*ends, cut)
    finally:
        for link in ends:
            link.abort(LinkTruncated("the test is over"))
            await link.wait_ended()


@link_checks
async def test_conformance(check: Check) -> None:
    await check(connect)


async def test_messages_are_received_in_the_order_in_which_they_were_sent() -> None:
    socket = TunnelSocket(Line(), 1 << 20)
    for number in (2, 0, 3, 1):
        socket.arrived(number, memoryview(bytes([number])))
    assert [bytes(await socket.receive()) for _ in range(4)] == [b"\0", b"\1", b"\2", b"\3"]


@pytest.mark.parametrize("number", [0, 1])
async def test_a_message_that_comes_twice_ends_the_tunnel(number: int) -> None:
    socket = TunnelSocket(Line(), 1 << 20)
    socket.arrived(0, memoryview(b"first"))
    await socket.receive()
    socket.arrived(1, memoryview(b"second"))
    socket.arrived(number, memoryview(b"again"))
    assert bytes(await socket.receive()) == b"second"
    with pytest.raises(LinkTruncated, match="twice"):
        await socket.receive()


@given(window=st.integers(1, 20_000), sizes=st.lists(st.integers(0, 9_000), max_size=30), seed=st.randoms())
def test_what_is_under_way_keeps_within_the_window_and_all_arrives(window, sizes, seed) -> None:
    async def play() -> None:
        near, far, out, _ = tunnel(window)
        most = 0

        async def send() -> None:
            nonlocal most
            for size in sizes:
                await near.send(bytes(size))
                most = max(most, sum(map(cost, out.carried)) - sum(taken))

        taken: list[int] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for size in sizes:
                for _ in range(seed.randrange(3)):
                    await asyncio.sleep(0)
                message = await far.receive()
                assert len(message) == size
                taken.append(cost(message))
        assert most <= window + max(sizes, default=0) + MESSAGE_COST

    asyncio.run(play())


async def test_who_sends_more_than_the_window_ends_the_tunnel() -> None:
    socket = TunnelSocket(Line(), 10 * (100 + MESSAGE_COST))
    for number in range(10):
        socket.arrived(number, memoryview(bytes(100)))
    assert "open" in repr(socket)
    socket.arrived(10, memoryview(bytes(100)))
    assert "LinkTruncated" in repr(socket)


async def test_a_sender_waits_for_room_and_no_longer_than_the_tunnel_lasts() -> None:
    near, far, _, _ = tunnel(window=1)
    await near.send(b"one")
    sending = asyncio.create_task(near.send(b"two"))
    await asyncio.sleep(1)
    assert not sending.done()
    await far.receive()
    await sending
    sending = asyncio.create_task(near.send(b"three"))
    await asyncio.sleep(1)
    near.ended(LinkTruncated("gone"))
    with pytest.raises(LinkTruncated):
        await sending


@pytest.mark.parametrize(
    ("code", "error"),
    [(CloseCode.GOODBYE, LinkTruncated), (CloseCode.HANDSHAKE, HandshakeFailed), (CloseCode.REFUSED, LinkRefused)],
)
async def test_the_other_end_learns_why_and_what_has_arrived_is_received(code: CloseCode, error: type) -> None:
    near, far, out, _ = tunnel()
    await near.send(b"last words")
    await near.close(code)
    await near.close(CloseCode.GONE)
    assert out.codes == [code]
    assert bytes(await far.receive()) == b"last words"
    with pytest.raises(error):
        await far.receive()
    for socket in (near, far):
        with pytest.raises(LinkError):
            await socket.send(b"more")


async def test_a_link_over_a_tunnel_says_so() -> None:
    async with connect() as pair:
        assert isinstance(pair.near, TunnelLink)
        assert repr(pair.near).endswith(f"open over {RELAY[:10]}>")
        pair.start()


async def test_an_altered_byte_ends_the_link_and_is_not_held_against_the_peer() -> None:
    near, far, out, _ = tunnel()
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(greet(near, security(ALICE), LIMITS, BOB.peer_id))
        called = group.create_task(return_greeting(far, security(BOB), LIMITS, ALICE.peer_id))
    a, b = (TunnelLink(socket, RELAY, task.result(), LIMITS) for socket, task in ((near, calling), (far, called)))
    inboxes = Inbox(), Inbox()
    out.change = lambda message: message[:-1] + bytes([message[-1] ^ 1])
    for link, inbox in zip((a, b), inboxes, strict=True):
        link.start(inbox)
    a.send(Packet(b"secret"))
    error = await inboxes[1].closed()
    assert type(error) is LinkTruncated
    assert "they do not decrypt" in str(error)
    assert not inboxes[1].packets
    assert b.ended
    await inboxes[0].closed()
    for link in (a, b):
        await link.wait_ended()


def test_it_is_a_message_socket() -> None:
    socket: MessageSocket = TunnelSocket(Line(), 1)
    socket.cut()
