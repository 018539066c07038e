"""How fast a link moves a model: `python -m tests.benchmarks.link [--size-mb 100] [--rounds 7]`.

Two processes on this host, uvloop, float32 bytes; all ways take turns in every round, and are compared within it. The
time is from the first byte handed over until the other end has said that it has the last. `sockets` is the limit: a
blocking send and a blocking receive into one buffer. Target: the encrypted link at 0.40 of it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import aiohttp
import uvloop
from aiohttp import web

from p2pfl.crypto.identity import Identity
from p2pfl.errors import LinkError
from p2pfl.link.base import Link
from p2pfl.link.trust import Open
from p2pfl.link.websocket import WebSocketTransport
from p2pfl.wire.packet import Packet

MESSAGE = 64 * 1024


class Peer:
    """A receiver with one buffer, used again for every transfer, that answers each with a small packet."""

    def __init__(self, size: int) -> None:
        self.buffer = memoryview(bytearray(size))
        self.model = memoryview(os.urandom(size))
        self.link: Link | None = None
        self.done = asyncio.Event()

    def start(self, link: Link) -> None:
        self.link = link
        link.start(self)

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        return True

    def packet_received(self, packet: Packet) -> None:
        if packet.buffers:
            self.link.send(Packet(b"have it"))
        elif packet.head == b"send it":
            self.link.send(Packet(b"model", (self.model,)))
        self.done.set()

    def link_closed(self, error: LinkError) -> None:
        self.done.set()

    async def push(self) -> None:
        self.done.clear()
        self.link.send(Packet(b"model", (self.model,)))
        await self.done.wait()

    async def pull(self) -> None:
        self.done.clear()
        self.link.send(Packet(b"send it"))
        await self.done.wait()


def transport(seed: int) -> WebSocketTransport:
    return WebSocketTransport(Identity.from_seed(bytes([seed]) * 32), trust=Open())


def serve_sockets(ready: Connection, size: int) -> None:
    target = memoryview(bytearray(size))
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            got = 0
            while count := connection.recv_into(target[got:]):
                got += count
                if got == size:
                    connection.sendall(b"!")
                    got = 0


def serve_websocket(ready: Connection, size: int) -> None:
    async def answer(request: web.BaseRequest) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        target = memoryview(bytearray(size))
        got = 0
        async for message in ws:
            target[got : got + len(message.data)] = message.data
            got += len(message.data)
            if got == size:
                await ws.send_bytes(b"!")
                got = 0
        return ws

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(serve())


def serve_link(ready: Connection, size: int) -> None:
    async def serve() -> None:
        peer = Peer(size)
        listener = await transport(1).listen("0", peer.start)
        ready.send(listener.addresses[0])
        await asyncio.Event().wait()

    uvloop.run(serve())


@asynccontextmanager
async def other_process(serve: Callable[[Connection, int], None], size: int) -> AsyncIterator[int | str]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, size), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(here.recv)
    finally:
        process.terminate()
        process.join()


def through_sockets(connection: socket.socket, model: memoryview) -> None:
    connection.sendall(model)
    connection.recv(1)


async def through_websocket(ws: aiohttp.ClientWebSocketResponse, model: memoryview) -> None:
    for start in range(0, len(model), MESSAGE):
        await ws.send_bytes(model[start : start + MESSAGE])
    await ws.receive()


async def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Bytes per second of every way, by round."""
    peer = Peer(size)
    async with (
        other_process(serve_sockets, size) as port,
        other_process(serve_websocket, size) as ws_port,
        other_process(serve_link, size) as address,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{ws_port}/") as ws,
    ):
        peer.start(await transport(2).dial(str(address)))
        with socket.create_connection(("127.0.0.1", int(port))) as connection:
            ways = {
                "sockets": lambda: asyncio.to_thread(through_sockets, connection, peer.model),
                "WebSocket, 64 KiB, in the clear": lambda: through_websocket(ws, peer.model),
                "link, dialler sends": peer.push,
                "link, listener sends": peer.pull,
            }
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds + 1):
                for name, way in ways.items():
                    start = time.perf_counter()
                    await way()
                    speeds[name].append(size / (time.perf_counter() - start))
        await peer.link.close()
    return {name: values[1:] for name, values in speeds.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    speeds = uvloop.run(measure(arguments.size_mb * 1_000_000, arguments.rounds))
    limit = speeds["sockets"]
    print(f"{'':34} {'GB/s':>6} {'best':>6}  ratio to sockets, median (min to max)")
    for name, values in speeds.items():
        ratios = sorted(value / most for value, most in zip(values, limit, strict=True))
        print(
            f"{name:34} {statistics.median(values) / 1e9:6.2f} {max(values) / 1e9:6.2f}"
            f"  {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
