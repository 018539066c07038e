"""Links inside one process: packets pass by reference, in order, and as late as the network says.

What is sent here is what a socket would be sent, without the copying: heads are encoded, sizes are checked, and links
end in the same ways. There is no task per link and no future per packet, so that thousands of nodes fit into one loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from p2pfl.errors import (
    ConfigError,
    LinkClosed,
    LinkError,
    LinkRefused,
    LinkToSelf,
    LinkTruncated,
    ListenFailed,
    PeerUnreachable,
    RemoteProtocolError,
    UntrustedPeer,
)
from p2pfl.link.agenda import Agenda
from p2pfl.link.base import Link, LinkLimits, LinkStatistics, Receiver
from p2pfl.wire.frame import check_packet, framed_size
from p2pfl.wire.packet import Packet

if TYPE_CHECKING:
    from p2pfl.crypto.signing import Signer

__all__ = ["MemoryLink", "MemoryListener", "MemoryNetwork", "MemoryTransport"]

CONNECT_SECONDS = 127.0  # after which Linux gives up a connection that nobody answers, and so do we
GOODBYE_SECONDS = 2.0  # how long close() waits for the other end
_ROUNDING = 1e-9  # seconds: a lag that is shorter is none
RECORD_OVERHEAD = 18  # bytes by which a record is longer on a socket: its length and its authentication tag

Delay = Callable[[str, str, int], float]
Lines = Callable[[str, str], Callable[[int], float]]
Accept = Callable[[Link], None]
Wake = Callable[[str], Awaitable[None]]
Watch = Callable[["MemoryLink", Packet], None]


class MemoryNetwork:
    """All that can reach each other.

    `delay(source, destination, bytes)` gives the seconds from sending to arrival; a packet never overtakes an earlier
    one of its link. Without a delay a packet arrives in the next turn of the loop. `lines(source, destination)` gives
    the same as a function of bytes, once for each direction of a link: for a network that keeps something there.
    `wake(name)` is awaited when somebody dials a name at which nobody listens; it may change that. `opened(link)` is
    told of each new link: its dialler's end. `watch(link, packet)` is told of each packet as it is sent.
    """

    def __init__(
        self,
        delay: Delay | None = None,
        limits: LinkLimits | None = None,
        lines: Lines | None = None,
        wake: Wake | None = None,
        opened: Callable[[MemoryLink], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._lines = lines if lines is not None else None if delay is None else partial(partial, delay)
        self.limits = limits or LinkLimits()
        self.wake = wake
        self._opened = opened
        self.watch = watch
        self.agenda = Agenda()
        self.doors: dict[str, MemoryListener] = {}
        self.links: dict[str, dict[MemoryLink, None]] = {}  # peer id -> its ends of open links
        self.muted: Counter[tuple[str, str]] = Counter()  # from whom to whom nothing passes, and for how many reasons
        self.lags: dict[tuple[str, str], float] = {}  # from whom to whom packets are late by so many seconds more
        self.offline: dict[str, asyncio.Event] = {}  # who cannot be reached, and reaches nobody; set once that is over
        self._dials = 0

    def transport(
        self, peer_id: str, caps: dict[str, object] | None = None, signer: Signer | None = None
    ) -> MemoryTransport:
        """The access of one node to this network."""
        return MemoryTransport(self, peer_id, caps, signer)

    def connect(self, dialler: MemoryTransport, door: MemoryListener) -> tuple[MemoryLink, MemoryLink]:
        """Make both ends of a link: the dialler's, the listener's."""
        self._dials += 1
        names = f"{dialler.peer_id}\0{door.transport.peer_id}\0{self._dials}"
        channel_id = hashlib.blake2b(names.encode(), digest_size=32, person=b"p2pfl-memory").digest()
        near = MemoryLink(dialler, door.transport, channel_id, initiator=True)
        far = MemoryLink(door.transport, dialler, channel_id, initiator=False)
        near.peer, far.peer = far, near
        for link in (near, far):
            self.links.setdefault(link.local, {})[link] = None
        if self._opened is not None:
            self._opened(near)
        return near, far

    def cut(self, a: str, b: str) -> None:
        """Break all links between two peers: what is under way is lost, and both ends are told LinkTruncated."""
        for link in self._between(a, b):
            link.cut()

    def take_offline(self, peer_id: str) -> None:
        """Cut all links of a peer, and let nobody dial it, nor it anybody, until `bring_online`."""
        self.offline.setdefault(peer_id, asyncio.Event())
        for link in tuple(self.links.get(peer_id, ())):
            link.cut(f"{peer_id[:10]} went offline")

    def bring_online(self, peer_id: str) -> None:
        """Let a peer dial, and be dialled, again."""
        if (away := self.offline.pop(peer_id, None)) is not None:
            away.set()

    def partition(self, a: str, b: str) -> None:
        """Let nothing pass between two peers, and tell nobody. What is held up passes after `heal`, as with TCP."""
        self.mute(a, b)
        self.mute(b, a)

    def heal(self, a: str, b: str) -> None:
        """End a partition. Of several between the same two, the last that ends lets them talk."""
        self.unmute(a, b)
        self.unmute(b, a)

    def mute(self, source: str, destination: str) -> None:
        """Let nothing pass in this one direction, and make no link: a handshake would not come back."""
        self.muted[source, destination] += 1

    def unmute(self, source: str, destination: str) -> None:
        """End what `mute` began."""
        self.muted[source, destination] -= 1
        self.muted = +self.muted  # without those that are 0
        if (source, destination) not in self.muted:
            for link in self._between(source, destination):
                if link.local == source:
                    link.release()

    def lag(self, source: str, destination: str, seconds: float) -> None:
        """Let packets in this direction be late by so many seconds more, or less if it is negative."""
        late = self.lags.pop((source, destination), 0.0) + seconds
        if late > _ROUNDING:
            self.lags[source, destination] = late

    def corrupt(self, source: str, destination: str) -> None:
        """Change a bit of the next packet in this direction of each link: it fails to decrypt, and ends the link."""
        for link in self._between(source, destination):
            if link.local == source:
                link.corrupted = True

    def kill(self, peer_id: str, *, silently: bool = False) -> None:
        """A process is gone, without a word. Nothing at its end of a link is told, and nobody answers its doors.

        Its system ends the links, behind what is under way; `silently`: it is gone, too, and nobody ends them.
        """
        for name in [name for name, door in self.doors.items() if door.transport.peer_id == peer_id]:
            del self.doors[name]
        for link in tuple(self.links.get(peer_id, ())):
            link.die(silently=silently)

    def _between(self, a: str, b: str) -> list[MemoryLink]:
        """Both ends of all open links between two peers."""
        pairs = ((a, b), (b, a))
        return [link for local, remote in pairs for link in self.links.get(local, ()) if link.remote == remote]

    def line(self, source: str, destination: str) -> Callable[[int], float] | None:
        """Bytes to seconds in one direction of a link; None: there is no delay."""
        return None if self._lines is None else self._lines(source, destination)

    def __repr__(self) -> str:
        return f"<MemoryNetwork {len(self.doors)} listening, {sum(map(len, self.links.values())) // 2} links>"


class MemoryTransport:
    """How one node reaches the others of a MemoryNetwork. Addresses are names: "memory:<name>", or just the name."""

    scheme = "memory:<peer id>"

    def __init__(
        self, network: MemoryNetwork, peer_id: str, caps: dict[str, object] | None = None, signer: Signer | None = None
    ) -> None:
        self.network = network
        self.peer_id = peer_id
        self.signer = signer
        self.refused: Callable[[str, LinkError], None] | None = None  # nobody is turned away here
        self.caps = caps or {}

    def admits(self, peer_id: str) -> bool:
        """Everybody; see Transport."""
        return True

    async def dial(self, address: str, expect: str | None = None) -> MemoryLink:
        """Link to whoever listens at the address; see Transport."""
        name = _name(address)
        door = self.network.doors.get(name)
        if door is None and self.network.wake is not None and self.peer_id not in self.network.offline:
            await self.network.wake(name)
            door = self.network.doors.get(name)
        if door is None:
            raise PeerUnreachable(f"nobody listens at memory:{name}: listen there first, or correct the name")
        answering = door.transport.peer_id
        if answering == self.peer_id:
            raise LinkToSelf(f"memory:{name} is this node itself")
        if expect is not None and answering != expect:
            raise UntrustedPeer(f"{answering} answers at memory:{name}, where {expect} was expected")
        if {(answering, self.peer_id), (self.peer_id, answering)} & self.network.muted.keys():
            raise PeerUnreachable(f"memory:{name} does not answer")
        for end in (self.peer_id, answering):
            if (away := self.network.offline.get(end)) is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await away.wait()
                raise PeerUnreachable(f"memory:{name} does not answer: {end[:10]} is offline")
        near, far = self.network.connect(self, door)
        door.admit(far)
        return near

    async def dial_back(self, link: Link, port: int) -> None:
        """See whether who dialled `link` listens under its peer id; there are no ports. See DialsBack."""
        await (await self.dial(link.remote, link.remote)).close()

    async def listen(self, address: str, accept: Accept) -> MemoryListener:
        """Take a name, by default the peer id; see Transport."""
        name = _name(address) or self.peer_id
        if name in self.network.doors:
            raise ListenFailed(f"memory:{name} is in use: close its listener first, or take another name")
        door = MemoryListener(self, name, accept)
        self.network.doors[name] = door
        return door

    def __repr__(self) -> str:
        return f"<MemoryTransport of {self.peer_id[:10]}>"


class MemoryListener:
    """A name under which a node can be dialled."""

    def __init__(self, transport: MemoryTransport, name: str, accept: Accept) -> None:
        self.addresses: tuple[str, ...] = (f"memory:{name}",)
        self.transport = transport
        self._name = name
        self._accept = accept
        self._context = copy_context()

    def admit(self, link: MemoryLink) -> None:
        """Give a new link to the node, in the context in which it began to listen."""
        asyncio.get_running_loop().call_soon(self._accept, link, context=self._context)

    async def close(self) -> None:
        """Accept no more; see Listener."""
        self.transport.network.doors.pop(self._name, None)

    def __repr__(self) -> str:
        return f"<MemoryListener {self.addresses[0]}>"


class MemoryLink:
    """One end of a link. A packet that was sent lies on the wire until `_arrive` is called, once per packet."""

    __slots__ = (
        "__weakref__",
        "_closing",
        "_context",
        "_dead",
        "_delay",
        "_due",
        "_error",
        "_held",
        "_inbox",
        "_loop",
        "_network",
        "_queued",
        "_receiver",
        "_wake",
        "_wire",
        "channel_id",
        "corrupted",
        "initiator",
        "local",
        "path",
        "peer",
        "remote",
        "remote_caps",
        "renew_at",
        "statistics",
    )

    relay = ""
    suite = ""  # nothing is encrypted
    peer: MemoryLink  # the other end

    def __init__(self, near: MemoryTransport, far: MemoryTransport, channel_id: bytes, *, initiator: bool) -> None:
        self.local = near.peer_id
        self.remote = far.peer_id
        self.path = (near.peer_id, far.peer_id)
        self.initiator = initiator
        self.remote_caps = dict(far.caps)
        self.channel_id = channel_id
        self.statistics = LinkStatistics()
        self.renew_at = math.inf
        self.corrupted = False  # whether the next packet that we have sent is changed on its way
        self._network = near.network
        self._delay = near.network.line(self.local, self.remote)
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # later that of start(): a receiver must not run in the context of a sender
        self._receiver: Receiver | None = None
        self._inbox: list[tuple[Packet | LinkError, int]] = []  # what arrived before the start
        self._wire: deque[tuple[Packet | LinkError | None, int]] = deque()  # with sizes; None once withdrawn
        self._queued = 0  # bytes on the wire
        self._held = 0  # arrivals that a partition holds up
        self._due = 0.0  # when the last thing on the wire arrives
        self._closing = False
        self._dead = False  # our process has been killed
        self._error: LinkError | None = None  # once ended
        self._wake: asyncio.Event | None = None  # made by the first who waits

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver; see Link."""
        self._context = copy_context()
        self._loop.call_soon(self._begin, receiver, context=self._context)

    def send(self, packet: Packet) -> None:
        """Queue a packet; see Link. Raises MessageError for one that is over the limits."""
        if self._closing or self._error is not None:
            return
        check_packet(packet, self._network.limits)
        records, size = framed_size(packet)
        size += records * RECORD_OVERHEAD
        self.statistics.packets_sent += 1
        self.statistics.bytes_sent += size
        self._put(packet, size)
        if self._network.watch is not None:
            self._network.watch(self, packet)

    def withdraw(self, packet: Packet) -> bool:
        """Take back a packet that has not arrived; see Link."""
        for index, (item, size) in enumerate(self._wire):
            if item is packet:
                self._wire[index] = (None, 0)
                self._queued -= size
                self.statistics.packets_sent -= 1
                self.statistics.bytes_sent -= size
                return True
        return False

    @property
    def queued(self) -> int:
        """Bytes that were sent and have not arrived."""
        return self._queued

    async def drain(self) -> None:
        """Wait until little is on the wire; see Link."""
        while self._queued > self._network.limits.high_water and self._error is None:
            await self._woken()

    async def close(self) -> None:
        """Say goodbye behind what is under way; see Link."""
        if self._error is None and not self._closing:
            self._closing = True
            self._put(LinkClosed(f"{self.local[:10]} said goodbye"), 0)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    while self._error is None:
                        await self._woken()
        finally:
            self.abort(LinkClosed(f"said goodbye to {self.remote[:10]}, which did not answer"))

    def abort(self, error: LinkError) -> None:
        """End at once; see Link. The other end is told LinkRefused if that is the reason, else LinkTruncated."""
        if self._error is None:
            self._end(error)
            kind = LinkRefused if isinstance(error, LinkRefused) else LinkTruncated
            self._put(kind(f"{self.local[:10]} ended the link: {error}"), 0)

    def cut(self, reason: str = "") -> None:
        """Break the link: what is under way is lost, and both ends are told LinkTruncated, with the reason if any."""
        for end in (self, self.peer):
            end.abort(LinkTruncated(f"the link to {end.remote[:10]} was cut{reason and ': '}{reason}"))

    def die(self, *, silently: bool) -> None:
        """Our process is gone, so that nobody is told here; see MemoryNetwork.kill."""
        self._dead, self._receiver = True, None
        if self._error is None:
            self._end(LinkTruncated("killed"))
            if not silently:
                self._put(LinkTruncated(f"{self.local[:10]} is gone without a goodbye"), 0)

    def release(self) -> None:
        """Let pass what a partition held up."""
        held, self._held = self._held, 0
        for _ in range(held):
            self._loop.call_soon(self._arrive, context=self.peer._context)

    def _put(self, item: Packet | LinkError, size: int) -> None:
        self._wire.append((item, size))
        self._queued += size
        network, loop = self._network, self._loop
        delay = self._delay(size) if self._delay is not None else 0.0
        if network.lags:
            delay += network.lags.get(self.path, 0.0)
        if delay or self._due:
            now = loop.time()
            self._due = max(self._due, now + delay)
            if self._due > now:
                network.agenda.add(self._due, self)
                return
        loop.call_soon(self._arrive, context=self.peer._context)

    def arrive(self) -> None:
        """What `_arrive` does, in the receiver's context."""
        self.peer._context.run(self._arrive)

    def _arrive(self) -> None:
        """Take the oldest from the wire: timers that are due together fire in any order, packets do not."""
        network = self._network
        if network.muted and self.path in network.muted:
            self._held += 1
            return
        item, size = self._wire.popleft()
        self._queued -= size
        if self._wake is not None:
            self._wake.set()
        if item is None:
            return
        if self.corrupted and isinstance(item, Packet):
            self.corrupted = False
            self.peer.abort(LinkTruncated("bytes were changed on the way: they do not decrypt"))
            return
        self.peer._take(item, size)

    def _begin(self, receiver: Receiver) -> None:
        if self._dead:
            return
        self._receiver = receiver
        if self._error is not None:
            receiver.link_closed(self._error)
        inbox, self._inbox = self._inbox, []
        for item, size in inbox:
            self._take(item, size)

    def _take(self, item: Packet | LinkError, size: int) -> None:
        if self._error is not None:
            return
        if self._receiver is None:
            self._inbox.append((item, size))
        elif isinstance(item, Packet):
            self.statistics.packets_received += 1
            self.statistics.bytes_received += size
            try:
                self._receiver.packet_received(_readonly(item))
            except RemoteProtocolError as error:
                self.abort(error)
        else:
            if isinstance(item, LinkClosed) and not self._closing:
                self._closing = True
                self._put(LinkClosed(f"{self.local[:10]} answered the goodbye"), 0)
            self._end(item)

    def _end(self, error: LinkError) -> None:
        self._error = error
        links = self._network.links[self.local]
        del links[self]
        if not links:
            del self._network.links[self.local]
        if self._wake is not None:
            self._wake.set()
        if self._receiver is not None:
            self._loop.call_soon(self._receiver.link_closed, error, context=self._context)

    async def _woken(self) -> None:
        if self._wake is None:
            self._wake = asyncio.Event()
        self._wake.clear()
        await self._wake.wait()

    def __repr__(self) -> str:
        state = "open" if self._error is None else type(self._error).__name__
        return f"<MemoryLink {self.local[:10]} {'->' if self.initiator else '<-'} {self.remote[:10]} {state}>"


def _readonly(packet: Packet) -> Packet:
    for buffer in packet.buffers:
        if not buffer.readonly:
            return Packet(packet.head, tuple(buffer.toreadonly() for buffer in packet.buffers))
    return packet


def _name(address: str) -> str:
    name = address.removeprefix("memory:")
    if "://" in name:
        raise ConfigError(f"address {address!r} is none of a node in this process: write memory:<peer id>")
    return name
