"""The handshake over any socket of messages, in bounded time; and links upon the sockets that somebody else carries.

A WebSocket agrees on the cipher in its upgrade. A tunnel has none, so two messages go before the three of Noise: the
dialler's list of subprotocols, as the header would have it, and the one that is chosen. Both are bound by the prologue.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from p2pfl.errors import HandshakeFailed, LinkTruncated, RemoteProtocolError
from p2pfl.link.base import CloseCode, LinkLimits, MessageSocket
from p2pfl.link.channel import SecureChannel
from p2pfl.link.sealed import SealedLink
from p2pfl.link.secure import Handshake, SecuritySettings, choose_subprotocol, offered_subprotocols
from p2pfl.link.transfers import Transfers

__all__ = ["TunnelLink", "greet", "return_greeting", "shake"]

MAX_GREETING = 1024  # bytes of the list of subprotocols


async def shake(socket: MessageSocket, handshake: Handshake, limits: LinkLimits, message: bytes = b"") -> SecureChannel:
    """Exchange the messages of a handshake, ours first if there is one; a failure closes the socket.

    Raises HandshakeFailed (and its kinds), LinkRefused.
    """
    async with _in_time(socket, limits):
        await _exchange(socket, handshake, message)
    return handshake.channel


async def greet(socket: MessageSocket, security: SecuritySettings, limits: LinkLimits, expect: str) -> SecureChannel:
    """Agree on a cipher, and shake hands with `expect`, at the end that dialled. See `shake`."""
    async with _in_time(socket, limits):
        offered = offered_subprotocols()
        await socket.send(", ".join(offered).encode())
        (chosen,) = _names(await socket.receive())[:1]
        handshake = Handshake(security, initiator=True, offered=offered, chosen=chosen, expect=expect)
        await _exchange(socket, handshake, handshake.begin())
    return handshake.channel


async def return_greeting(
    socket: MessageSocket, security: SecuritySettings, limits: LinkLimits, expect: str
) -> SecureChannel:
    """Agree on a cipher, and shake hands with `expect`, at the end that was dialled. See `shake`."""
    async with _in_time(socket, limits):
        offered = _names(await socket.receive())
        chosen = choose_subprotocol(offered)
        await socket.send(chosen.encode())
        handshake = Handshake(security, initiator=False, offered=offered, chosen=chosen, expect=expect)
        await _exchange(socket, handshake)
    return handshake.channel


async def _exchange(socket: MessageSocket, handshake: Handshake, message: bytes = b"") -> None:
    while True:
        if message:
            await socket.send(message)
        if handshake.done:
            return
        message = handshake.receive(await socket.receive())


def _names(message: bytes | memoryview) -> list[str]:
    """The subprotocols of a greeting."""
    if len(message) > MAX_GREETING:
        raise HandshakeFailed(f"the other end greets with {len(message)} bytes")
    try:
        return bytes(message).decode("ascii").split(", ")
    except UnicodeDecodeError as error:
        raise HandshakeFailed("the other end does not offer to speak p2pfl") from error


@asynccontextmanager
async def _in_time(socket: MessageSocket, limits: LinkLimits) -> AsyncIterator[None]:
    """What goes wrong within closes the socket, and is a HandshakeFailed if it was the connection's fault."""
    try:
        async with asyncio.timeout(limits.handshake_seconds):
            yield
    except TimeoutError as error:
        await socket.close(CloseCode.HANDSHAKE)
        raise HandshakeFailed(f"no handshake within {limits.handshake_seconds:g} s") from error
    except (LinkTruncated, RemoteProtocolError) as error:
        await socket.close(CloseCode.HANDSHAKE)
        raise HandshakeFailed(f"the handshake broke off: {error}") from error
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            socket.cut()  # whoever cancels does not want to wait for a polite end
        await socket.close(CloseCode.HANDSHAKE)
        raise


class TunnelLink(SealedLink):
    """A link through a third node."""

    def __init__(
        self,
        socket: MessageSocket,
        relay: str,
        channel: SecureChannel,
        limits: LinkLimits,
        spare: Callable[[int], float] = lambda wanted: math.inf,
        transfers: Transfers | None = None,
    ) -> None:
        super().__init__(socket, channel, limits, spare, transfers)
        self.relay = relay  # the peer id of who carries

    @property
    def ended(self) -> bool:
        """Whether it is not open any more."""
        return self._error is not None

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]} over {self.relay[:10]}>"
