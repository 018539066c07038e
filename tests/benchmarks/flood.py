"""One node, fifty hostile peers: `python -m tests.benchmarks.flood [ATTACK ...] [--peers 50] [--seconds 5]`.

The node is a process of its own whose transport may use 64 MiB for packets under way, and 8 MiB for those of one link.
Each attack has a fresh one. The table has its memory before, at its peak and when all have left, against what the
limits allow; and how long an honest peer waited for an answer at most. What a hostile peer does, it does with keys of
its own, within the encrypted channel, as fast as it can.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count

from p2pfl import Identity, LinkError, Message, Node, Peer, Request, Tensors, TensorSpec, WebSocketTransport
from p2pfl.link.base import LinkLimits
from p2pfl.link.sealed import SealedLink
from p2pfl.link.trust import Open
from p2pfl.node.membership import Member, Roster
from p2pfl.wire.codec import encode, pack
from p2pfl.wire.frame import FIRST, LAST, FrameWriter
from p2pfl.wire.packet import Packet
from tests.chaos.cluster import peak_bytes, resident_bytes

MIB = 1 << 20
LIMITS = LinkLimits(max_under_way=8 * MIB, max_under_way_in_all=64 * MIB)
BESIDES = 4 * MIB  # of each link: a WebSocket message that arrives, in pieces and whole, one that leaves, sockets
HEAD_BYTES = 250_000  # nearly the largest


class Note(Message):
    text: str
    params: Tensors


class Quote(Message):
    text: str


class Fetch(Request[Quote]):
    """A short question with a long answer."""


class Draw(Request[Note]):
    """A short question with an answer of 1 MiB."""


class Subject:
    """Takes its time for a note; answers at once."""

    @Note.handler
    async def note(self, message: Note, peer: Peer) -> None:
        await asyncio.sleep(0.01)

    @Fetch.handler
    async def fetch(self, ask: Fetch, peer: Peer) -> Quote:
        return Quote("x" * 10_000)

    @Draw.handler
    async def draw(self, ask: Draw, peer: Peer) -> Note:
        return note(MIB)


def note(size: int) -> Note:
    """A message with so many bytes of tensors."""
    return Note("", Tensors((TensorSpec("params", "f32", (size // 4,)),), (memoryview(bytes(size)),)))


async def serve() -> None:
    """What the node does, until it is killed."""
    transport = WebSocketTransport(Identity.generate(), trust=Open(), limits=LIMITS)
    async with Node(Subject(), transport=transport, listen="127.0.0.1:0") as node:
        print(node.addresses[0], flush=True)
        await node.run()


# -- what hostile peers do ---------------------------------------------------------------------------------------------


class Hostile:
    """One end of a link that does as it likes. It reads only if `start` was called on the link."""

    def __init__(self, link: SealedLink) -> None:
        self.link = link
        self._packets = 0

    async def send(self, packet: Packet, *, stream: int = 0, whole: bool = True) -> None:
        """Send a packet on a stream, or all of it but its last record."""
        writer = FrameWriter()
        writer.append(packet)
        while record := writer.next_record():
            kind = record[0][0]
            if kind == FIRST:
                record[0] = struct.pack("!BIQ", kind, stream, self._packets) + bytes(record[0])[13:]
                self._packets += 1
            else:
                record[0] = struct.pack("!BI", kind, stream)
            if whole or kind != LAST:
                await self.say(self.link._channel.seal_message([record]))

    async def say(self, message: bytearray) -> None:
        """Send one WebSocket message."""
        await self.link._socket.send(message)
        await asyncio.sleep(0)  # sending is often no reason to wait: let the others have their turn


Attack = Callable[[Hostile], Awaitable[None]]


async def bulk(hostile: Hostile) -> None:
    """Tensors within the limit of a link, all but the end of them."""
    await hostile.send(pack("tell", 1, encode(note(LIMITS.max_under_way))), whole=False)
    await asyncio.Event().wait()


async def heads(hostile: Hostile) -> None:
    """As many heads as may be under way, nearly as large as may be, all but the end of them."""
    large = b"[" * HEAD_BYTES
    for stream in range(LIMITS.max_streams):
        await hostile.send(Packet(large), stream=stream, whole=False)
    await asyncio.Event().wait()


async def tells(hostile: Hostile) -> None:
    """Notes with 100 kB of tensors, faster than they are handled and without regard to credit."""
    for number in count(1):
        await hostile.send(pack("tell", number, encode(note(100_000))))


async def fragments(hostile: Hostile) -> None:
    """Messages as small as they get, of a type that nobody handles."""
    for number in count(1):
        await hostile.send(Packet(b'["tell",%d,"X",{}]' % number))


async def deaf_to_tensors(hostile: Hostile) -> None:
    """Asks for large tensors, never too many at once, and reads nothing."""
    for number in count(1):
        await hostile.send(pack("ask", number, encode(Draw())))
        await _in_time(number)


async def deaf_to_text(hostile: Hostile) -> None:
    """Asks for 10 kB of text, never too many at once, and reads nothing."""
    for number in count(1):
        await hostile.send(pack("ask", number, encode(Fetch())))
        await _in_time(number)


async def deaf_to_failures(hostile: Hostile) -> None:
    """Asks what nobody answers, under a long name, and reads nothing."""
    for number in count(1):
        await hostile.send(Packet(b'["ask",%d,"%b",{}]' % (number, b"X" * 1000)))
        await _in_time(number)


async def deaf_to_pongs(hostile: Hostile) -> None:
    """Pings without end, and reads nothing."""
    for number in count(1):
        await hostile.send(pack("ping", number & 0xFFFFFFFF))


async def _in_time(number: int) -> None:
    """Give the node the time to handle what it got, so that no bound on what is open is overstepped."""
    if number % 16 == 0:
        await asyncio.sleep(0.05)


async def rosters(hostile: Hostile) -> None:
    """Gossip of members that there are none of, with all the addresses that one may have."""
    for number in count(1):
        members = []
        for _ in range(20):
            addresses = tuple(f"ws://{os.urandom(80).hex()}:1/{place}" for place in range(16))
            members.append(Member(os.urandom(26).hex(), "x" * 200, addresses, None, number))
        await hostile.send(pack("tell", number, encode(Roster(members))))
        await _in_time(number)


async def garbage(hostile: Hostile) -> None:
    """Records that are none, in messages as large as may be."""
    await hostile.say(bytearray(os.urandom(1_000_000)))


ATTACKS: dict[str, tuple[Attack, bool]] = {  # and whether what comes back is read
    "bulk": (bulk, True),
    "heads": (heads, True),
    "tells": (tells, True),
    "fragments": (fragments, True),
    "rosters": (rosters, True),
    "garbage": (garbage, True),
    "deaf-tensors": (deaf_to_tensors, False),
    "deaf-text": (deaf_to_text, False),
    "deaf-failures": (deaf_to_failures, False),
    "deaf-pongs": (deaf_to_pongs, False),
}


class _Indifferent:
    """Takes everything and does nothing."""

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        return False

    def packet_received(self, packet: Packet) -> None:
        pass

    def link_closed(self, error: LinkError) -> None:
        pass


async def assail(name: str, address: str, peers: int) -> None:
    """Be so many hostile peers, until the process is killed."""
    async with asyncio.TaskGroup() as group:
        for _ in range(peers):
            group.create_task(_assail(address, *ATTACKS[name]))


async def _assail(address: str, attack: Attack, reads: bool) -> None:
    """Who is thrown out comes again as somebody else."""
    while True:
        with suppress(LinkError):
            link = await WebSocketTransport(Identity.generate(), trust=Open()).dial(address)
            try:
                if reads:
                    link.start(_Indifferent())
                await attack(Hostile(link))
                await link.wait_ended() if reads else await asyncio.sleep(1)
            finally:
                link.abort(LinkError("enough"))
                await link.wait_ended()
        await asyncio.sleep(0.5)


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survived:
    """Memory in bytes. `answers` that an honest peer got in the meantime, and its longest wait in seconds."""

    before: int
    peak: int
    after: int
    answers: int
    longest: float


async def flood(name: str, peers: int, seconds: float) -> Survived:
    """One attack on a fresh node."""
    async with child("--serve") as subject:
        assert subject.stdout is not None
        address = (await subject.stdout.readline()).decode().strip()
        async with Node(peers=[address], name="honest") as honest:
            await honest.linked()
            before = resident_bytes(subject.pid)
            async with child("--assail", name, address, "--peers", str(peers)):
                waits = [wait async for wait in ask_politely(honest, seconds)]
            await asyncio.sleep(2)  # it still works off what came
            peak, after = peak_bytes(subject.pid), resident_bytes(subject.pid)
    return Survived(before, peak, after, sum(wait < seconds for wait in waits), max(waits))


async def ask_politely(node: Node, seconds: float) -> AsyncIterator[float]:
    """Seconds for each answer, while it lasts. What does not come within as many seconds has taken them all."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (start := loop.time()) < until:
        try:
            async with asyncio.timeout(seconds):  # the last may go on beyond the end
                [peer] = await node.linked()
                await peer.ask(Fetch())
            yield loop.time() - start
        except (TimeoutError, LinkError):
            yield seconds
        await asyncio.sleep(0.2)


@asynccontextmanager
async def child(*options: str) -> AsyncIterator[Process]:
    """This program in another role, until it is killed."""
    command = (sys.executable, "-m", "tests.benchmarks.flood", *options)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


def lines(found: Iterator[tuple[str, Survived]], peers: int) -> Iterator[str]:
    """The table, row by row."""
    allowed = LIMITS.max_under_way_in_all + peers * BESIDES
    yield f"{'MB':14} {'before':>7} {'peak':>7} {'after':>7} {'bound':>7} {'':4} {'answers':>7} {'longest, s':>10}"
    for name, survived in found:
        answers = 8 * MIB * peers if name == "deaf-tensors" else 0  # what eight handlers of each peer have computed
        bound = survived.before + allowed + answers
        verdict = "ok" if survived.peak <= bound else "OVER"
        memory = " ".join(f"{size / 1e6:7.0f}" for size in (survived.before, survived.peak, survived.after, bound))
        yield f"{name:14} {memory} {verdict:4} {survived.answers:7} {survived.longest:10.2f}"


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if the node went over its bound."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.flood", description=__doc__)
    parser.add_argument("attacks", nargs="*", help=f"of {', '.join(ATTACKS)}; default all")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--serve", action="store_true", help="be the node")
    parser.add_argument("--assail", nargs=2, metavar=("ATTACK", "ADDRESS"), help="be the hostile peers")
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(serve())
    if options.assail:
        attack, address = options.assail
        asyncio.run(assail(attack, address, options.peers))
    found = (
        (name, asyncio.run(flood(name, options.peers, options.seconds))) for name in options.attacks or tuple(ATTACKS)
    )
    over = False
    for line in lines(found, options.peers):
        over |= "OVER" in line
        print(line, flush=True)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
