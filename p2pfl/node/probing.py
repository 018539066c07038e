"""What `p2pfl doctor` asks of a node, and how it measures a link: versions, clock, bandwidth, dialling back.

Bandwidth is what batches of parcels take, each batch four times as large as the one before, until one takes long enough
to be believed. The side that answers bounds all of it: so many parcels at once and a second, over all peers together.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from p2pfl.errors import LinkError
from p2pfl.link.admission import TokenBucket
from p2pfl.link.base import DialsBack
from p2pfl.node.membership import MOST_CHARACTERS
from p2pfl.node.peer import Peer
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors, TensorSpec

if TYPE_CHECKING:
    from p2pfl.node.node import Node

__all__ = [
    "PARCEL_BYTES", "Bandwidth", "ClockRead", "Describe", "Description", "DialBack", "DialledBack",
    "FetchParcel", "Parcel", "Probed", "ReadClock", "Software", "TakeParcel", "Taken", "Timing", "time_link",
]  # fmt: skip

PARCEL_BYTES = 64 * 1024
_PARCELS_AT_ONCE = 512.0  # that a node sends and takes, over all peers: 32 MiB ...
_PARCELS_PER_SECOND = 16.0  # ... and then 1 MiB/s: who asks for more is told that there is none
_DIALS_AT_ONCE = 4.0  # back to who asks, over all peers ...
_DIALS_PER_SECOND = 0.1
_DIAL_SECONDS = 5.0
_PINGS = 7
_BELIEVED_SECONDS = 1.0  # a batch that takes so long tells enough
_GROWTH = 4
_LARGEST_BATCH = 64  # asks of one peer that may be open: more would measure the window, not the line

_Move = Callable[[], Coroutine[Any, Any, bool]]
"""Moves one parcel; False: there is none, or no more are taken."""


@dataclass(frozen=True)
class Software:
    """What a node runs on."""

    p2pfl: str
    protocol: str
    python: str
    torch: str
    platform: str


class Description(Message, tag="probe/description"):
    """What a node says of itself. Raises ValueError for what should not be shown on a screen."""

    software: Software
    name: str
    seat: int | None
    addresses: tuple[str, ...]
    course: str  # its hash; empty: there is none yet
    model_bytes: int | None  # of one model of the course, as it is sent

    def __post_init__(self) -> None:
        for text in (*astuple(self.software), self.name, self.course, *self.addresses):
            if len(text) > MOST_CHARACTERS or not text.isprintable():
                raise ValueError("a description has a text that is too long, or does not print")


class Describe(Request[Description], tag="probe/describe"):
    """Who are you, and what do you run?"""


class ClockRead(Message, tag="probe/clock"):
    """The wall clock, in seconds since 1970."""

    seconds: float


class ReadClock(Request[ClockRead], tag="probe/read-clock"):
    """What time is it? Many of these also measure the round trip."""


class Parcel(Message, tag="probe/parcel"):
    """So many bytes, or none: the answering side has sent enough lately."""

    content: Tensors | None


class FetchParcel(Request[Parcel], tag="probe/fetch-parcel"):
    """Send a parcel. To be asked before any is sent: from then on they are taken, whatever else was agreed."""


class Taken(Message, tag="probe/taken"):
    """A parcel has come, and whether more may."""

    more: bool


class TakeParcel(Request[Taken], tag="probe/take-parcel"):
    """Here is a parcel."""

    content: Tensors


class DialledBack(Message, tag="probe/dialled-back"):
    """What came of DialBack. No more than that: who asks must not learn what else answers behind a firewall."""

    outcome: Literal["reached", "unreached", "busy"]


class DialBack(Request[DialledBack], tag="probe/dial-back"):
    """Dial the host from which this link came, at this port; who asks must answer there."""

    port: Annotated[int, Meta(ge=1, le=65535)]


class Probed:
    """The role that answers all of this. It is cheap to play, and bounded whoever asks."""

    def __init__(self, node: Node, software: Software, clock: Callable[[], float] = time.time) -> None:
        self.course = ""  # hash of the course, once there is one
        self.model_bytes: int | None = None
        self._node = node
        self._software = software
        self._clock = clock
        self._parcels = TokenBucket(_PARCELS_AT_ONCE, _PARCELS_PER_SECOND, 0.0)
        self._dials = TokenBucket(_DIALS_AT_ONCE, _DIALS_PER_SECOND, 0.0)
        self._content = _random_parcel()

    @Describe.handler
    async def describe(self, ask: Describe, peer: Peer) -> Description:
        own = self._node.members.own
        return Description(self._software, own.name, own.seat, own.addresses, self.course, self.model_bytes)

    @ReadClock.handler
    async def read_clock(self, ask: ReadClock, peer: Peer) -> ClockRead:
        return ClockRead(self._clock())

    @FetchParcel.handler
    async def fetch_parcel(self, ask: FetchParcel, peer: Peer) -> Parcel:
        if self._node.dispatch.schemas:  # else any tensors are taken
            self._node.agree(self._content.schema)
        return Parcel(self._content if self._allowed(self._parcels) else None)

    @TakeParcel.handler
    async def take_parcel(self, ask: TakeParcel, peer: Peer) -> Taken:
        return Taken(self._allowed(self._parcels))

    @DialBack.handler
    async def dial_back(self, ask: DialBack, peer: Peer) -> DialledBack:
        transport, link = self._node.transport, peer.connection().link
        if not isinstance(transport, DialsBack) or link.initiator:  # a host that we dialled ourselves tells nothing
            return DialledBack("unreached")
        if not self._allowed(self._dials):
            return DialledBack("busy")
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                await transport.dial_back(link, ask.port)
        except (LinkError, TimeoutError):
            return DialledBack("unreached")
        return DialledBack("reached")

    @staticmethod
    def _allowed(bucket: TokenBucket) -> bool:
        return bucket.take(asyncio.get_running_loop().time())


class Timing(NamedTuple):
    """Of a link: the median round trip, and by how much the peer's wall clock is ahead of ours."""

    rtt_seconds: float
    clock_offset_seconds: float


async def time_link(peer: Peer, clock: Callable[[], float] = time.time) -> Timing:
    """Ask for the time a few times. Raises LinkError, RemoteError.

    The offset is that of the quickest answer, taken to have been given half-way: the clock filter of D. Mills, Network
    Time Protocol, RFC 5905, section 10, https://www.rfc-editor.org/rfc/rfc5905. It is right to half the round trip.
    """
    loop, samples = asyncio.get_running_loop(), []
    for _ in range(_PINGS):
        began, asked_at = loop.time(), clock()
        answer = await peer.ask(ReadClock())
        seconds = loop.time() - began
        samples.append((seconds, answer.seconds - asked_at - seconds / 2))
    return Timing(statistics.median(seconds for seconds, _ in samples), min(samples)[1])


class Bandwidth:
    """Bytes a second from a peer and to it, as far as they have been measured; None: not at all."""

    def __init__(self, peer: Peer, rtt_seconds: float, most_bytes: int) -> None:
        """At most `most_bytes` are sent in each direction, and at least one parcel."""
        self.down: float | None = None
        self.up: float | None = None
        self._peer = peer
        self._rtt = rtt_seconds
        self._most = max(1, most_bytes // PARCEL_BYTES)
        self._content = _random_parcel()

    async def measure(self, seconds: float) -> None:
        """Measure both directions, each for at most half of `seconds`. Raises LinkError, RemoteError.

        A direction in which nothing came through by then is given the rate that it stayed under.
        """
        self.down = await self._direction(self._fetch, seconds / 2)
        self.up = await self._direction(self._send, seconds / 2)

    async def _fetch(self) -> bool:
        return (await self._peer.ask(FetchParcel())).content is not None

    async def _send(self) -> bool:
        return (await self._peer.ask(TakeParcel(self._content))).more

    async def _direction(self, move: _Move, seconds: float) -> float | None:
        loop, rate, left, batch = asyncio.get_running_loop(), None, self._most, 1
        try:
            async with asyncio.timeout(seconds):
                while left > 0:
                    count, began = min(batch, left, _LARGEST_BATCH), loop.time()
                    if not await _all(move, count):
                        break
                    took = loop.time() - began
                    rate = self._rate(count, took) or rate
                    if took >= _BELIEVED_SECONDS:
                        break
                    left, batch = left - count, _GROWTH * batch
        except TimeoutError:
            return rate or PARCEL_BYTES / seconds
        return rate

    def _rate(self, count: int, took: float) -> float | None:
        """Without the round trip in which nothing flows. What is hidden in the noise of that counts as half."""
        flowing = max(took - self._rtt, took / 2)
        return count * PARCEL_BYTES / flowing if flowing > 0 else None


async def _all(move: _Move, count: int) -> bool:
    """Whether each of so many parcels went through. Raises what the first that failed did."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(move()) for _ in range(count)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return all(task.result() for task in tasks)


def _random_parcel() -> Tensors:
    """Bytes that no line compresses."""
    return Tensors((TensorSpec("parcel", "u8", (PARCEL_BYTES,)),), (memoryview(os.urandom(PARCEL_BYTES)),))
