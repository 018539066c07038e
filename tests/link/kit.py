"""The conformance kit of links: what every link does, whatever it runs over.

A new link brings a function `connect() -> async context manager of Pair` and one parametrised test:

    @link_checks
    async def test_conformance(check): await check(connect)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import pytest

from p2pfl.errors import LinkClosed, LinkError, LinkRefused, LinkTruncated, MessageError, RemoteProtocolError
from p2pfl.link.base import Link
from p2pfl.wire.frame import MAX_RECORD, framed_size
from p2pfl.wire.packet import Packet

RECORD_OVERHEAD = 18


@dataclass
class Inbox:
    """A receiver that keeps everything."""

    packets: list[Packet] = field(default_factory=list)
    errors: list[LinkError] = field(default_factory=list)
    refuse_admission: bool = False
    refuse_packets: bool = False
    agreed: bool = True  # what it is told of
    announced: list[tuple[bytes, tuple[int, ...]]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        self.announced.append((head, sizes))
        self.changed.set()
        if self.refuse_admission:
            raise RemoteProtocolError("not expected")
        return self.agreed

    def packet_received(self, packet: Packet) -> None:
        if self.refuse_packets:
            raise RemoteProtocolError("not understood")
        self.packets.append(packet)
        self.changed.set()

    def link_closed(self, error: LinkError) -> None:
        self.errors.append(error)
        self.changed.set()

    async def received(self, count: int) -> list[Packet]:
        """Wait for that many packets in all."""
        await self._until(lambda: len(self.packets) >= count or bool(self.errors))
        assert len(self.packets) >= count, f"the link ended: {self.errors}"
        return self.packets

    async def admission(self) -> None:
        """Wait until a packet is announced."""
        await self._until(lambda: bool(self.announced))

    async def closed(self) -> LinkError:
        """Wait for the end, and see that it is told once."""
        await self._until(lambda: bool(self.errors))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(self.errors) == 1, "link_closed was called more than once"
        return self.errors[0]

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Pair:
    """Both ends of one link, not started; `cut` breaks it without either end's doing."""

    near: Link
    far: Link
    cut: Callable[[], None]
    by_reference: bool = False

    def start(self) -> tuple[Inbox, Inbox]:
        near, far = Inbox(), Inbox()
        self.near.start(near)
        self.far.start(far)
        return near, far


Connect = Callable[[], AbstractAsyncContextManager[Pair]]
Check = Callable[[Connect], Awaitable[None]]


def pattern(size: int, seed: int = 0) -> memoryview:
    """Bytes in which a misplaced chunk shows."""
    unit = b"".join(((i * 2654435761 + seed) & 0xFFFFFFFF).to_bytes(4, "big") for i in range(64)) + bytes([seed & 255])
    return memoryview((unit * (size // len(unit) + 1))[:size])


def same(a: Packet, b: Packet) -> bool:
    return a.head == b.head and [bytes(x) for x in a.buffers] == [bytes(y) for y in b.buffers]


async def check_ends_mirror_each_other(connect: Connect) -> None:
    async with connect() as pair:
        pair.start()
        near, far = pair.near, pair.far
        assert (near.local, near.remote) == (far.remote, far.local)
        assert near.initiator
        assert not far.initiator
        assert near.channel_id == far.channel_id
        assert len(near.channel_id) == 32
        assert near.remote[:10] in repr(near)
        assert "\n" not in repr(near)


async def check_order_both_ways(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        for n in range(200):
            pair.near.send(Packet(b"to far %d" % n))
            pair.far.send(Packet(b"to near %d" % n))
        assert [p.head for p in await far.received(200)] == [b"to far %d" % n for n in range(200)]
        assert [p.head for p in await near.received(200)] == [b"to near %d" % n for n in range(200)]


async def check_all_sizes(connect: Connect) -> None:
    edges = [0, 1, 5, MAX_RECORD - 40, MAX_RECORD - 1, MAX_RECORD, MAX_RECORD + 1, 3 * MAX_RECORD, 1_000_000]
    packets = [Packet(b"h" * 10, (pattern(size, size),)) for size in edges]
    packets += [Packet(bytes(pattern(size)), (pattern(7),)) for size in (0, 1, 100_000, 256 * 1024)]
    packets += [Packet(b"", (memoryview(b""),) * 3), Packet(b"many", tuple(pattern(n % 3, n) for n in range(4096)))]
    packets += [Packet(b"mixed", (pattern(0), pattern(100_000), pattern(0), pattern(3), pattern(70_000), pattern(0)))]
    async with connect() as pair:
        _, far = pair.start()
        for count, packet in enumerate(packets, 1):
            pair.near.send(packet)
            got = (await far.received(count))[-1]
            assert same(got, packet)
            assert all(buffer.readonly for buffer in got.buffers)


async def check_heads_of_all_sizes(connect: Connect) -> None:
    packets = [Packet(bytes(pattern(size))) for size in (0, 1, MAX_RECORD, 2 * MAX_RECORD + 3, 256 * 1024)]
    async with connect() as pair:
        near, _ = pair.start()
        for packet in packets:
            pair.far.send(packet)
        assert all(same(a, b) for a, b in zip(await near.received(len(packets)), packets, strict=True))


async def check_waits_for_start(connect: Connect) -> None:
    async with connect() as pair:
        near, far = Inbox(), Inbox()
        pair.near.start(near)
        pair.near.send(Packet(b"early", (pattern(100),)))
        await pair.near.drain()
        for _ in range(10):
            await asyncio.sleep(0)
        pair.far.start(far)
        assert (await far.received(1))[0].head == b"early"


async def check_withdraw(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        unwanted, small = Packet(b"unwanted", (pattern(20_000_000),)), Packet(b"small")
        pair.near.send(unwanted)
        assert pair.near.withdraw(unwanted)
        assert not pair.near.withdraw(unwanted)
        wanted = Packet(b"wanted", (pattern(300_000),))
        pair.near.send(wanted)
        assert same((await far.received(1))[0], wanted)
        assert not pair.near.withdraw(wanted)
        pair.far.send(small)
        await near.received(1)
        assert not pair.far.withdraw(small)


async def check_close_sends_what_is_queued(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        bulk = Packet(b"bulk", (pattern(1_000_000),))
        pair.near.send(bulk)
        pair.near.send(Packet(b"control"))
        await pair.near.close()
        assert isinstance(await near.closed(), LinkClosed)
        assert isinstance(await far.closed(), LinkClosed)
        assert {p.head for p in far.packets} == {b"bulk", b"control"}
        await pair.near.close()
        await pair.far.close()


async def check_both_may_close_at_once(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(pair.near.close())
            group.create_task(pair.far.close())
        assert isinstance(await near.closed(), LinkClosed)
        assert isinstance(await far.closed(), LinkClosed)


async def check_abort_tells_both(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        reason = RemoteProtocolError("enough")
        pair.near.abort(reason)
        pair.near.abort(LinkClosed("too late"))
        assert await near.closed() is reason
        assert isinstance(await far.closed(), LinkTruncated)


async def check_refusal_is_told(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        pair.far.abort(LinkRefused("a duplicate"))
        assert isinstance(await far.closed(), LinkRefused)
        assert isinstance(await near.closed(), LinkRefused)


async def check_cut_is_truncation(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        pair.near.send(Packet(b"before"))
        await far.received(1)
        pair.cut()
        assert isinstance(await near.closed(), LinkTruncated)
        assert isinstance(await far.closed(), LinkTruncated)


async def check_ended_before_start_is_told(connect: Connect) -> None:
    async with connect() as pair:
        reason = LinkRefused("never wanted")
        pair.near.abort(reason)
        near, far = pair.start()
        assert await near.closed() is reason
        assert isinstance(await far.closed(), LinkRefused)


async def check_ended_link_is_quiet(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        await pair.near.close()
        await near.closed()
        await far.closed()
        for link in (pair.near, pair.far):
            late = Packet(b"late", (pattern(3_000_000),))
            link.send(late)
            await link.drain()
            assert not link.withdraw(late)
            link.abort(LinkTruncated("again"))
            await link.close()
        assert not far.packets
        assert len(near.errors) == len(far.errors) == 1


async def check_drain_waits_for_room(connect: Connect) -> None:
    async with connect() as pair:
        _, far = pair.start()
        bulk = Packet(b"bulk", (pattern(8_000_000),))
        pair.near.send(bulk)
        await pair.near.drain()
        pair.near.send(Packet(b"", (pattern(8_000_000),)))
        pair.near.abort(LinkTruncated("no more"))
        await pair.near.drain()
        await far.closed()


async def check_refused_packet_ends_link(connect: Connect) -> None:
    async with connect() as pair:
        near, far = pair.start()
        far.refuse_packets = True
        pair.near.send(Packet(b"nonsense"))
        assert isinstance(await far.closed(), RemoteProtocolError)
        assert isinstance(await near.closed(), LinkTruncated)


async def check_refused_admission_ends_link(connect: Connect) -> None:
    async with connect() as pair:
        if pair.by_reference:
            return
        near, far = pair.start()
        far.refuse_admission = True
        pair.near.send(Packet(b"head", (pattern(200_000), pattern(1))))
        assert isinstance(await far.closed(), RemoteProtocolError)
        assert isinstance(await near.closed(), LinkTruncated)
        assert far.announced == [(b"head", (200_000, 1))]


async def check_statistics(connect: Connect) -> None:
    packets = [Packet(b"abc"), Packet(b"", (pattern(500_000), pattern(0), pattern(9))), Packet(bytes(70_000))]
    async with connect() as pair:
        _, far = pair.start()
        for packet in packets:
            pair.near.send(packet)
        await far.received(len(packets))
        sizes = [size + records * RECORD_OVERHEAD for records, size in map(framed_size, packets)]
        near_counts, far_counts = pair.near.statistics, pair.far.statistics
        assert near_counts.packets_sent == far_counts.packets_received == len(packets)
        assert near_counts.bytes_sent == far_counts.bytes_received == sum(sizes)


async def check_packets_over_the_limits_are_not_sent(connect: Connect) -> None:
    async with connect() as pair:
        _, far = pair.start()
        for packet in (Packet(bytes(256 * 1024 + 1)), Packet(b"", (memoryview(b""),) * 4097)):
            with pytest.raises(MessageError):
                pair.near.send(packet)
        pair.near.send(Packet(b"fine"))
        assert [p.head for p in await far.received(1)] == [b"fine"]


CHECKS: list[Check] = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
link_checks = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
