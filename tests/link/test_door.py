from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from p2pfl.link import door
from p2pfl.link.door import Door

pytestmark = pytest.mark.sockets


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())
        self.transport.close()


@asynccontextmanager
async def opened(host: str = "127.0.0.1") -> AsyncIterator[Door]:
    found = await Door.open(Echo, host, 0)
    try:
        yield found
    finally:
        found.close()


async def ask(there: Door) -> bytes:
    reader, writer = await asyncio.open_connection(*there.sockets[0].getsockname()[:2])
    writer.write(b"hello")
    answer = await reader.read()
    writer.close()
    return answer


async def test_connections_go_to_the_protocol() -> None:
    async with opened() as there:
        assert [await ask(there) for _ in range(3)] == [b"HELLO"] * 3


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_without_file_descriptors_it_pauses_says_so_once_and_recovers(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop, tried = asyncio.get_running_loop(), 0
    accept = loop.sock_accept

    async def exhausted(listening: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tried
        tried += 1
        if tried <= 3:
            raise OSError(number, "Too many open files")
        return await accept(listening)

    monkeypatch.setattr(door, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(loop, "sock_accept", exhausted)
    began = loop.time()
    async with opened() as there:
        assert await ask(there) == b"HELLO"
    assert loop.time() - began >= 0.06
    assert [record.message for record in caplog.records] == [
        "nobody can link to this node now (Too many open files): raise its limit, as by ulimit -n"
    ]


async def test_who_goes_away_at_once_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, tried = asyncio.get_running_loop(), 0
    accept = loop.sock_accept

    async def aborted(listening: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise ConnectionAbortedError
        return await accept(listening)

    monkeypatch.setattr(loop, "sock_accept", aborted)
    async with opened() as there:
        assert await ask(there) == b"HELLO"


async def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    async with opened() as there:
        with pytest.raises(OSError, match="in use"):
            await Door.open(Echo, "127.0.0.1", there.sockets[0].getsockname()[1])


async def test_a_closed_door_takes_nobody() -> None:
    async with opened() as there:
        host, port = there.sockets[0].getsockname()[:2]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, port)
