"""The proxy does to bytes what it says, and nothing else. Only lower bounds of times are looked at."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.proxy import Proxy, Toxics, proxy

pytestmark = pytest.mark.sockets

DATA = random.Random(0).randbytes(300_000)


@pytest.fixture
async def echo() -> AsyncIterator[Proxy]:
    """A proxy in front of a server that sends everything back."""
    serving: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]  # a coroutine runs in a task
        with suppress(OSError, asyncio.CancelledError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        async with proxy(server.sockets[0].getsockname()[:2]) as carrier:
            yield carrier
        await asyncio.wait(serving or {asyncio.create_task(asyncio.sleep(0))})


async def dial(carrier: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", carrier.port)


async def echoed(carrier: Proxy, data: bytes = DATA) -> bytes:
    """What comes back until the end, which we announce behind the data."""
    reader, writer = await dial(carrier)

    async def send() -> None:
        with suppress(OSError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()

    sending = asyncio.create_task(send())
    received = bytearray()
    with suppress(OSError):
        while chunk := await reader.read(1 << 16):
            received += chunk
    await sending
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return bytes(received)


def seconds(since: float) -> float:
    return asyncio.get_running_loop().time() - since


async def test_without_faults_all_passes(echo: Proxy) -> None:
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(echoed(echo)) for _ in range(3)]
    assert [task.result() for task in found] == [DATA] * 3
    assert echo.accepted == 3


async def test_latency_jitter_and_slices_change_when_and_not_what(echo: Proxy) -> None:
    echo.up.latency, echo.up.jitter, echo.down.slice = 0.05, 0.02, 1000
    start = asyncio.get_running_loop().time()
    assert await echoed(echo) == DATA
    assert seconds(start) >= 0.05
    echo.clear()
    assert (echo.up, echo.down) == (Toxics(), Toxics())


async def test_slices_arrive_one_by_one(echo: Proxy) -> None:
    echo.down.slice, echo.down.rate = 10, 400.0
    reader, writer = await dial(echo)
    writer.write(DATA[:40])
    assert len(await reader.read(100)) < 40
    writer.close()


async def test_a_rate_is_not_exceeded(echo: Proxy) -> None:
    echo.down.rate = 100_000.0
    start = asyncio.get_running_loop().time()
    assert await echoed(echo, DATA[:20_000]) == DATA[:20_000]
    assert seconds(start) >= 0.19


async def test_who_stalls_makes_the_sender_wait(echo: Proxy) -> None:
    echo.up.stalled = True
    reader, writer = await dial(echo)
    writer.write(bytes(50_000_000))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await writer.drain()
    echo.up.stalled = False
    assert await reader.readexactly(1_000_000) == bytes(1_000_000)
    writer.transport.abort()


async def test_who_has_vanished_stays_so_and_nobody_is_told(echo: Proxy) -> None:
    reader, writer = await dial(echo)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    echo.vanish()
    writer.write(b"into the void")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
    echo.clear()
    assert await echoed(echo) == DATA  # a new connection is sound, the old one lost bytes
    writer.write(b"after")
    writer.write_eof()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
    writer.transport.abort()


async def test_a_connection_on_which_nothing_was_lost_goes_on(echo: Proxy) -> None:
    reader, writer = await dial(echo)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    echo.vanish()
    echo.clear()
    writer.write(b"after")
    assert await reader.readexactly(5) == b"after"
    writer.close()


async def test_the_end_comes_late(echo: Proxy) -> None:
    echo.down.slow_close = 0.1
    start = asyncio.get_running_loop().time()
    assert await echoed(echo, b"all") == b"all"
    assert seconds(start) >= 0.1


async def test_a_cut_comes_once_and_behind_so_many_bytes(echo: Proxy) -> None:
    echo.down.cut_after = 100_000
    assert await echoed(echo) == DATA[:100_000]
    assert await echoed(echo) == DATA


async def test_a_flip_changes_one_bit_once(echo: Proxy) -> None:
    echo.up.flip_after = 70_000
    assert await echoed(echo) == DATA[:70_000] + bytes([DATA[70_000] ^ 1]) + DATA[70_001:]
    assert await echoed(echo) == DATA


async def test_a_reset_is_seen_at_both_ends(echo: Proxy) -> None:
    reader, writer = await dial(echo)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    echo.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def test_who_refuses_ends_new_connections_at_once(echo: Proxy) -> None:
    echo.refusing = True
    assert await echoed(echo, b"hello") == b""
    echo.refusing = False
    assert await echoed(echo, b"hello") == b"hello"


async def test_nobody_at_the_target_looks_like_a_reset(echo: Proxy) -> None:
    async with proxy(("127.0.0.1", 1)) as carrier:
        assert await echoed(carrier, b"hello") == b""


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=10), st.integers(0, 100))
def test_bytes_are_counted_over_chunks(chunks: list[bytes], at: int) -> None:
    data = b"".join(chunks)
    flipping, cutting = Toxics(flip_after=at), Toxics(cut_after=at)
    flipped = b"".join(flipping.damage(chunk)[0] for chunk in chunks)
    assert [place for place, (was, is_) in enumerate(zip(data, flipped, strict=True)) if was != is_] == [at][
        : at < len(data)
    ]
    assert (flipping.flip_after is None) == (at < len(data))
    passed = b""
    for chunk in chunks:
        part, ends = cutting.damage(chunk)
        passed += part
        if ends:
            break
    assert passed == data[:at]
