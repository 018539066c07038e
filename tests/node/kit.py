"""What the tests of nodes share: messages, roles, and nodes on a MemoryNetwork in virtual time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import orjson

from p2pfl.errors import LinkError
from p2pfl.link.base import Link
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Event
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.settings import NodeSettings
from p2pfl.wire.message import Message, Request
from p2pfl.wire.packet import Packet
from p2pfl.wire.session import SessionLimits
from tests.link.kit import Inbox

SETTLED = 40.0  # seconds after which retired links have closed and lost ones have been dialled again
QUIET = NodeSettings(SessionLimits(silence_seconds=math.inf), report_seconds=math.inf)


class Pong(Message):
    n: int


class Ping(Request[Pong]):
    n: int


class Note(Message):
    n: int


class Echo:
    """Answers at once, keeps notes."""

    def __init__(self) -> None:
        self.notes: list[int] = []

    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        if ask.n < 0:
            raise ValueError("it is negative")
        return Pong(ask.n + 1)

    @Note.handler
    async def note(self, note: Note, peer: Peer) -> None:
        self.notes.append(note.n)


class Gated:
    """Handlers that begin and then wait for the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []

    @property
    def running(self) -> int:
        return len(self.begun) - len(self.ended) - len(self.cancelled)

    async def _pass(self, n: int) -> None:
        self.begun.append(n)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(n)
            raise
        self.ended.append(n)

    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        await self._pass(ask.n)
        return Pong(ask.n + 1)

    @Note.handler
    async def note(self, note: Note, peer: Peer) -> None:
        await self._pass(note.n)


class Busy:
    """Plays a little course: meets, asks all, tells all, swaps with one."""

    async def run(self, node: Node) -> None:
        with node.waiting("the others"):
            peers = await node.meet([0, 1, 2], at_least=2)
        async with node.ask_all(peers, Ping(1)) as replies:
            async for _ in replies:
                await asyncio.sleep(0.01)
        await node.tell_all(peers, Note(1))
        with suppress(LinkError):
            await peers[0].ask(Ping(2))
        await asyncio.sleep(0.01)

    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        await asyncio.sleep(0.02)
        return Pong(ask.n)

    @Note.handler
    async def note(self, note: Note, peer: Peer) -> None:
        await asyncio.sleep(0.02)


class Log:
    """An observer that keeps every event, with the time."""

    def __init__(self, node: Node) -> None:
        self.events: list[tuple[float, Event]] = []
        self.finished = False
        node.observe(self)

    def push(self, event: Event) -> None:
        self.events.append((asyncio.get_running_loop().time(), event))

    def finish(self) -> None:
        self.finished = True

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def times(self, kind: type[Any]) -> list[float]:
        return [time for time, event in self.events if isinstance(event, kind)]


def make(network: MemoryNetwork, name: str, *roles: object, **options: Any) -> Node:
    """A node that listens under its name."""
    options.setdefault("listen", name)
    return Node(*roles, transport=network.transport(name), name=name, **options)


@asynccontextmanager
async def linked(
    near: tuple[object, ...] = (), far: tuple[object, ...] = (), network: MemoryNetwork | None = None, **options: Any
) -> AsyncIterator[tuple[Node, Node]]:
    """Nodes a and b, of which a has dialled b. The first roles are a's."""
    network = network or MemoryNetwork()
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(make(network, "b", *far, **options))
        a = await stack.enter_async_context(make(network, "a", *near, peers=["b"], **options))
        await until(lambda: a.peer("b").connected and b.peer("a").connected)
        await steps()
        yield a, b


async def steps(count: int = 20) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(reached: Any, seconds: float = 100.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not reached():  # noqa: ASYNC110 - virtual time: looking costs nothing
            await asyncio.sleep(0.001)


class Stranger:
    """The other end of a link to a node, without a node: what it sends is made by hand."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.inbox = Inbox()
        link.start(self.inbox)

    @classmethod
    async def dial(cls, network: MemoryNetwork, name: str, address: str) -> Stranger:
        return cls(await network.transport(name).dial(address))

    def send(self, kind: object, number: object, tag: object = "", fields: object = None) -> None:
        self.link.send(Packet(orjson.dumps([kind, number, tag, {} if fields is None else fields])))

    def heads(self, kind: str) -> list[list[Any]]:
        """What has come of this kind."""
        return [head for packet in self.inbox.packets if (head := orjson.loads(packet.head))[0] == kind]
