"""A tunnel as the node between its ends carries it: messages pass on as they are, within bounds of memory.

An end may have `window` bytes under way, and one message beyond them, until the other end says that it has taken them
out: no more than that can wait here for an end that is slow. Who goes beyond breaks the protocol.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from p2pfl.errors import LinkClosed, LinkError, RemoteProtocolError
from p2pfl.link.base import CloseCode
from p2pfl.link.tunnel import MAX_CARRIED, cost
from p2pfl.wire.codec import encode
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors, TensorSpec

if TYPE_CHECKING:
    from p2pfl.node.connection import Connection
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer

__all__ = ["Cargo", "RoomMade", "Route", "TunnelEnded", "straight", "wrapped"]


class Cargo(Message, tag="relay/cargo"):
    """A message in a tunnel. Raises ValueError for one that is too large."""

    tunnel: int
    onward: bool  # whether it comes from who carries; else it goes there
    number: int
    data: Tensors

    def __post_init__(self) -> None:
        if len(self.data.buffers) != 1 or self.data.nbytes > MAX_CARRIED:
            raise ValueError(f"a tunnel carries one buffer of at most {MAX_CARRIED} bytes at a time")


class RoomMade(Message, tag="relay/room"):
    """So many more bytes were taken out of a tunnel at the other end."""

    tunnel: int
    onward: bool
    size: int


class TunnelEnded(Message, tag="relay/ended"):
    """There is no tunnel of this number any more; `code` is a CloseCode."""

    tunnel: int
    onward: bool
    code: int


def wrapped(data: bytes | bytearray) -> Tensors:
    """Bytes as what a message carries without copying them."""
    return Tensors((TensorSpec("", "u8", (len(data),)),), (memoryview(data),))


def straight(peer: Peer) -> Connection:
    """The connection to a peer, if it is its own: there are no tunnels in tunnels. Raises LinkError if it is not."""
    connection = peer.connection()
    if connection.link.relay:
        raise LinkClosed(f"{peer.label} is linked only through another node")
    return connection


class Route:
    """One tunnel that we carry. It takes its place until both ends have been told of its end, or are lost."""

    def __init__(
        self, node: Node, number: int, ends: tuple[Peer, Peer], window: int, forget: Callable[[int], object]
    ) -> None:
        """`forget` is called with the number when nothing is left to be done."""
        self.number = number
        self.ends = ends
        self.open = True
        self._window = window
        self._outlets = {peer: _Outlet(node, peer, number, self._left) for peer in ends}
        self._forget = forget

    @property
    def held(self) -> int:
        """Bytes that wait here."""
        return sum(outlet.held for outlet in self._outlets.values())

    def other(self, peer: Peer) -> Peer:
        """The peer at the other end."""
        return self.ends[peer is self.ends[0]]

    def carry(self, source: Peer, cargo: Cargo) -> None:
        """Pass a message of an end on. Raises RemoteProtocolError for one for which there is no room."""
        if not self.open:
            return
        outlet = self._outlets[self.other(source)]
        if outlet.under_way >= self._window:
            self.end(source, CloseCode.PROTOCOL)
            raise RemoteProtocolError(f"more than {self._window} bytes were put into a tunnel")
        outlet.put(replace(cargo, onward=True))

    def make_room(self, source: Peer, size: int) -> None:
        """Let the other end send more: this one has taken so much out. RemoteProtocolError if it cannot have."""
        if not self.open:
            return
        outlet = self._outlets[source]
        if not 0 < size <= outlet.under_way:
            self.end(source, CloseCode.PROTOCOL)
            raise RemoteProtocolError("more was taken out of a tunnel than was in it")
        outlet.under_way -= size
        self._outlets[self.other(source)].make_room(size)

    def end(self, source: Peer, code: int) -> None:
        """An end has left the tunnel, or is lost: what is under way is dropped, and the other end is told."""
        self.open = False
        self._outlets.pop(source, None)
        for outlet in tuple(self._outlets.values()):
            outlet.end(code)
        if not self._outlets:
            self._forget(self.number)

    def _left(self, peer: Peer) -> None:
        self.end(peer, CloseCode.GONE)

    def __repr__(self) -> str:
        return f"<Route {self.number} {'open' if self.open else 'ended'}: {' - '.join(end.label for end in self.ends)}>"


class _Outlet:
    """What is to be passed on to one end of a tunnel. `left` is called when it has been told of the tunnel's end, or
    cannot be told anything.
    """

    __slots__ = (
        "_code",
        "_left",
        "_node",
        "_number",
        "_peer",
        "_queue",
        "_room",
        "_told",
        "_waiting",
        "held",
        "under_way",
    )

    def __init__(self, node: Node, peer: Peer, number: int, left: Callable[[Peer], None]) -> None:
        self.under_way = 0  # bytes that were put in, and not taken out at this end
        self.held = 0  # those of them that wait here
        self._node = node
        self._peer = peer
        self._number = number
        self._left = left
        self._queue: deque[Cargo] = deque()
        self._room = 0  # bytes that this end may send more, and has not been told of
        self._code: int | None = None  # once ended
        self._told = False  # of that
        self._waiting = False  # for room to tell

    def put(self, cargo: Cargo) -> None:
        size = cost(cargo.data.buffers[0])
        self.under_way += size
        self.held += size
        self._queue.append(cargo)
        self._flush()

    def make_room(self, size: int) -> None:
        self._room += size
        self._flush()

    def end(self, code: int) -> None:
        if self._code is None:
            self._code = code
            self._queue.clear()
            self.held = self._room = 0
            self._flush()

    def _flush(self) -> None:
        """Tell the end as much as it takes now; the rest when it takes more."""
        if self._waiting:
            return
        try:
            connection = straight(self._peer)
            while (behind := self._behind) and connection.session.tells_left:
                connection.tell(encode(self._next()))
        except LinkError:
            self._left(self._peer)
            return
        if behind:
            self._waiting = True
            self._node.spawn(self._flush_later())
        elif self._code is not None:
            self._left(self._peer)

    @property
    def _behind(self) -> bool:
        """Whether there is something that the end has not been told."""
        return bool(self._queue or self._room or (self._code is not None and not self._told))

    def _next(self) -> Message:
        if self._code is not None:
            self._told = True
            return TunnelEnded(self._number, True, self._code)
        if self._room:
            room, self._room = self._room, 0
            return RoomMade(self._number, True, room)
        cargo = self._queue.popleft()
        self.held -= cost(cargo.data.buffers[0])
        return cargo

    async def _flush_later(self) -> None:
        with suppress(LinkError):
            await self._peer.room_to_tell()
        self._waiting = False
        self._flush()
