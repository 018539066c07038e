"""A TCP proxy on 127.0.0.1 that does to connections what networks do, switched while it runs.

The faults are those of toxiproxy (https://github.com/Shopify/toxiproxy), and flipped bits. Each direction has its own.
What acts once (`cut_after`, `flip_after`) counts bytes from when it was set, over all connections, and is then off.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

__all__ = ["Proxy", "Toxics", "proxy"]

_CHUNK = 64 * 1024
_IN_TRANSIT = 16  # chunks that a direction holds before it reads no more
_LOOK = 0.02  # seconds between two looks at whether to go on
_ABRUPTLY = struct.pack("ii", 1, 0)  # linger for 0 s: the end is a reset, and what is queued is dropped


@dataclass(slots=True)
class Toxics:
    """What happens to the bytes of one direction. Times in seconds, sizes in bytes."""

    latency: float = 0.0
    jitter: float = 0.0  # up to so much more latency, drawn for each chunk; the order stays
    rate: float = math.inf  # bytes a second
    slice: int = _CHUNK  # no more than this at once
    stalled: bool = False  # nothing is read, so that the sender has to wait
    vanished: bool = False  # all is dropped, the end too. A connection that has lost bytes stays so: half open
    slow_close: float = 0.0  # the end is passed on so late
    cut_after: int | None = None  # the connection is closed in mid-stream
    flip_after: int | None = None  # this byte gets one bit wrong

    def clear(self) -> None:
        """Off with everything; connections that have lost bytes remain lost."""
        for name, spec in self.__dataclass_fields__.items():
            setattr(self, name, spec.default)

    def damage(self, chunk: bytes) -> tuple[bytes, bool]:
        """What is left of a chunk, and whether the connection ends behind it."""
        if self.flip_after is not None:
            at, self.flip_after = self.flip_after, self.flip_after - len(chunk)
            if at < len(chunk):
                chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
                self.flip_after = None
        if self.cut_after is not None:
            at, self.cut_after = self.cut_after, self.cut_after - len(chunk)
            if at < len(chunk):
                self.cut_after = None
                return chunk[:at], True
        return chunk, False


@dataclass(eq=False)
class Proxy:
    """Passes connections on to `target` (host, port). `up` is what the dialler sends, `down` what it gets."""

    target: tuple[str, int]
    up: Toxics = field(default_factory=Toxics)
    down: Toxics = field(default_factory=Toxics)
    refusing: bool = False  # new connections are reset at once
    accepted: int = 0  # connections so far
    port: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._rng = random.Random(self.target[1])

    @property
    def address(self) -> str:
        """Where to dial."""
        return f"127.0.0.1:{self.port}"

    def clear(self) -> None:
        """Pass everything on again."""
        self.up.clear()
        self.down.clear()
        self.refusing = False

    def vanish(self) -> None:
        """Neither end hears of the other any more, and neither is told."""
        self.up.vanished = self.down.vanished = True

    def reset(self) -> None:
        """Break all connections: both ends see a reset."""
        for writer in tuple(self._open):
            _reset(writer)

    async def open(self) -> None:
        """Take connections, on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Take no more, and break those that there are."""
        assert self._server is not None
        self._server.close()
        while self._carrying:
            for task in self._carrying:
                task.cancel()
            await asyncio.wait(self._carrying)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        try:
            with self._held(writer), suppress(asyncio.CancelledError):  # the proxy closes
                if not self.refusing:
                    await self._carry(reader, writer)
        finally:
            self._carrying.discard(task)

    @contextmanager
    def _held(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """A connection that is broken at the end, unless it has closed by then."""
        self._open.add(writer)
        try:
            yield
        finally:
            self._open.discard(writer)
            _reset(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self.target)
            with self._held(back):
                async with asyncio.TaskGroup() as group:
                    self._pass_on(group, reader, back, self.up)
                    self._pass_on(group, there, writer, self.down)
                for end in (back, writer):
                    end.close()
                    await end.wait_closed()
        except* OSError:
            pass  # nobody is at the target, or one end broke off: the other sees it as a reset

    def _pass_on(
        self, group: asyncio.TaskGroup, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, toxics: Toxics
    ) -> None:
        transit: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_TRANSIT)
        group.create_task(self._take(reader, transit, toxics))
        group.create_task(_give(writer, transit, toxics))

    async def _take(
        self, reader: asyncio.StreamReader, transit: asyncio.Queue[tuple[float, bytes]], toxics: Toxics
    ) -> None:
        """Read, and note when each chunk is due at the other end. An empty one is the end."""
        loop, due, chunk = asyncio.get_running_loop(), 0.0, b"-"
        while chunk:
            try:
                chunk = await reader.read(_CHUNK)
            except OSError:
                if not toxics.vanished:
                    raise
                chunk = b""
            while toxics.stalled:  # noqa: ASYNC110 - a plain field is easier to switch than an event
                await asyncio.sleep(_LOOK)
            due = max(due, loop.time() + toxics.latency + self._rng.uniform(0, toxics.jitter))
            await transit.put((due, chunk))


async def _give(writer: asyncio.StreamWriter, transit: asyncio.Queue[tuple[float, bytes]], toxics: Toxics) -> None:
    """Write what is due, in the state in which the network leaves it."""
    loop, lost, chunk = asyncio.get_running_loop(), False, b"-"
    while chunk:
        due, chunk = await transit.get()
        await asyncio.sleep(due - loop.time())
        lost |= toxics.vanished
        if lost:
            continue
        passed, ends = toxics.damage(chunk)
        await _write(writer, passed, toxics)
        if ends:
            writer.close()
            await writer.wait_closed()
            raise ConnectionAbortedError
    if not lost:
        await asyncio.sleep(toxics.slow_close)
        writer.write_eof()


async def _write(writer: asyncio.StreamWriter, chunk: bytes, toxics: Toxics) -> None:
    while chunk:
        size = int(min(toxics.slice, max(1, toxics.rate / 20), len(chunk)))
        writer.write(chunk[:size])
        await writer.drain()
        await asyncio.sleep(size / toxics.rate)  # without a rate it still lets the slice leave by itself
        chunk = chunk[size:]


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPTLY)
    writer.transport.abort()


@asynccontextmanager
async def proxy(target: tuple[str, int]) -> AsyncIterator[Proxy]:
    """A proxy that is open."""
    carrier = Proxy(target)
    await carrier.open()
    try:
        yield carrier
    finally:
        await carrier.close()
