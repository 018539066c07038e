"""The seam between nodes and networks: what every link and every transport can do, and what each may raise.

`tests/link/kit.py` holds the conformance kit that all implementations pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from p2pfl.errors import HandshakeFailed, LinkError, LinkRefused, LinkTruncated
from p2pfl.link.ram import ram_bytes
from p2pfl.wire.packet import Packet

if TYPE_CHECKING:
    from p2pfl.crypto.signing import Signer  # which loads nacl: only who signs needs it

__all__ = [
    "CloseCode", "DialsBack", "Link", "LinkLimits", "LinkStatistics", "Listener", "MessageSocket", "Mountable",
    "Receiver", "Transport", "Tunnelling", "error_of_close",
]  # fmt: skip


@dataclass(slots=True)
class LinkStatistics:
    """Counts of one link since it was made. Bytes are those on the wire (in process: those that would be)."""

    packets_sent: int = 0
    packets_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Receiver(Protocol):
    """Who sits at the end of a link. All three are called on the event loop and must not block."""

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        """Whether the buffers of an announced packet, of `sizes` in bytes, were agreed: if not, they must be small.

        Raises RemoteProtocolError to refuse them, which ends the link. Nothing has been allocated by then.
        Links that pass buffers by reference do not call it.
        """

    def packet_received(self, packet: Packet) -> None:
        """Take one packet. Packets of one link come in the order in which their last bytes arrived.

        Raises RemoteProtocolError if it is malformed, which ends the link.
        """

    def link_closed(self, error: LinkError) -> None:
        """Called exactly once: LinkClosed after a goodbye by either end, else what went wrong."""


class Link(Protocol):
    """An open, authenticated, ordered link to one peer. Made by a transport; `start` is called once, by the node."""

    local: str  # our peer id
    remote: str  # the peer id that the other end has proven
    initiator: bool  # whether we dialled
    remote_caps: dict[str, object]  # what the other end said about itself in the handshake (not to be trusted)
    relay: str  # the peer id of who carries its messages, and can neither read nor change them; empty if nobody does
    suite: str  # how it is encrypted, such as "Noise_XX_25519_AESGCM_SHA256"; empty within a process
    channel_id: bytes  # the same at both ends and on no other link; what end-to-end signatures are bound to
    statistics: LinkStatistics
    renew_at: float  # when, on the loop's clock, a new link should take its place; infinite if it has no keys

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver. What arrived before waits until then."""

    def send(self, packet: Packet) -> None:
        """Queue a packet. Never blocks, never raises for a link that ended (its end is told to the receiver).

        Packets without buffers overtake those with; large ones share the wire record by record.
        """

    def withdraw(self, packet: Packet) -> bool:
        """Take back a packet not wholly sent yet; the other end forgets its part. False if it has left entirely."""

    async def drain(self) -> None:
        """Wait until few enough bytes are queued. Returns at once on a link that ended."""

    async def close(self) -> None:
        """Send what is queued, say goodbye, and wait for the end: at most 2 s, then abort."""

    def abort(self, error: LinkError) -> None:
        """End at once; the receiver is told `error`."""


class Listener(Protocol):
    """An open door. `addresses` are those at which others can dial it, with the real port."""

    addresses: tuple[str, ...]

    async def close(self) -> None:
        """Accept no more. Links that are open stay open."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds that hold whatever a peer does; each is one row of the denial-of-service table in DESIGN.md."""

    max_head: int = 256 * 1024  # bytes
    max_message: int = 1 << 30  # bytes of all buffers of one packet
    max_buffers: int = 4096  # buffers of one packet
    max_control: int = 2 << 20  # bytes of packets without buffers that wait for a peer that does not read
    max_streams: int = 64  # packets of one link that may be under way at once
    max_under_way: int = 64 << 20  # bytes of them together, those aside whose tensors were agreed
    max_under_way_in_all: int = field(default_factory=lambda: ram_bytes() // 4)  # bytes, on all links of one transport
    upgrade_seconds: float = 10.0  # from TCP accept to the WebSocket upgrade
    handshake_seconds: float = 5.0  # from the upgrade to the last handshake message
    half_open: int = 64  # handshakes under way, over all addresses
    half_open_per_host: int = 8
    handshakes_burst: int = 10  # token bucket per host; loopback is exempt
    handshakes_per_second: float = 1.0
    links: int = 512  # established, over all peers
    progress_bytes: int = 16 * 1024  # a transfer must average this many bytes a second ...
    progress_seconds: float = 30.0  # ... over this long
    high_water: int = 1 << 20  # queued bytes above which drain() waits
    renew_seconds: float = 86_400.0  # whoever dialled a link makes a new one, with new keys, after so long
    loopback_exempt: bool = field(default=True)  # the per-host limits do not apply to 127.0.0.0/8 and ::1


class Transport(Protocol):
    """How a node reaches others."""

    peer_id: str  # who we are
    signer: Signer | None  # signs as who we are; None: our ids prove nothing
    refused: Callable[[str, LinkError], None] | None  # told the address of each dialler that was turned away, and why
    scheme: str  # what its addresses look like, for error messages

    def admits(self, peer_id: str) -> bool:
        """Whether somebody of that id may take part: asked about those whom we have no link to."""

    async def dial(self, address: str, expect: str | None = None) -> Link:
        """Connect and authenticate. `expect` is the peer id that must answer.

        Raises PeerUnreachable, HandshakeFailed (and its kinds), LinkRefused; ConfigError for an address that is none.
        """

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Open a door; each authenticated link is given to `accept`. Port 0 takes a free one.

        Raises ListenFailed; ConfigError for an address that is none.
        """


@runtime_checkable
class DialsBack(Protocol):
    """A transport that knows from where a link came."""

    async def dial_back(self, link: Link, port: int) -> None:
        """See whether who dialled `link` can be dialled: at `port` of the host from which it came, and nowhere else.

        Nothing is pinned, and what was made is closed. Raises LinkError if the peer of `link` does not answer there.
        """


@runtime_checkable
class Mountable(Protocol):
    """A transport whose door can be part of somebody else's web application."""

    def handler(self, accept: Callable[[Link], None]) -> Callable[[Any], Awaitable[Any]]:
        """A request handler for the application's router."""


class CloseCode(IntEnum):
    """What a socket is closed with."""

    GOODBYE = 1000
    GONE = 1001
    HANDSHAKE = 4000
    REFUSED = 4001
    PROTOCOL = 4002
    TOO_LARGE = 4003


def error_of_close(code: int | None) -> LinkError:
    """What the other end meant by closing its socket. No code is a goodbye: that is FIN, inside the channel."""
    if code == CloseCode.HANDSHAKE:
        return HandshakeFailed(
            "the other end refused the handshake: compare network keys, names and trust at both ends"
        )
    if code == CloseCode.REFUSED:
        return LinkRefused("the other end does not want this link")
    if code == CloseCode.PROTOCOL:
        return LinkTruncated("the other end gave up: it found our bytes against the protocol")
    if code == CloseCode.TOO_LARGE:
        return LinkTruncated("the other end gave up: what we sent is over its limits")
    return LinkTruncated("the connection ended without a goodbye")


class MessageSocket(Protocol):
    """Binary messages over one connection, in order: what a handshake and a sealed link need."""

    async def send(self, message: bytes | bytearray) -> None:
        """Send one message, waiting for room. Raises LinkError if the connection has ended."""

    async def receive(self) -> bytes | memoryview:
        """The next message. Raises LinkError if the connection has ended, RemoteProtocolError for other messages."""

    async def close(self, code: CloseCode) -> None:
        """Close at once, saying `code` if that can be said without waiting long."""

    def cut(self) -> None:
        """Drop what is still to be sent, so that `close` need not wait for it."""


@runtime_checkable
class Tunnelling(Protocol):
    """A transport that can also make links over messages which somebody else carries."""

    async def dial_over(self, socket: MessageSocket, relay: str, expect: str) -> Link:
        """Authenticate to who answers at the other end of the tunnel, which must be `expect`.

        Gives a Relayed link. Raises HandshakeFailed (and its kinds), LinkRefused; the socket is closed then.
        """

    async def answer_over(self, socket: MessageSocket, relay: str, expect: str) -> Link:
        """The same at the end that was called. Who comes over a relay counts as a host, to the limits of strangers."""
