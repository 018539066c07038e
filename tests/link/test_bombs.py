"""WebSocket frames that are small to send and large to take: what a stranger may say before it has proven anything."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from p2pfl.crypto.identity import Identity
from p2pfl.errors import LinkError
from p2pfl.link.base import LinkLimits
from p2pfl.link.secure import offered_subprotocols
from p2pfl.link.trust import Open
from p2pfl.link.websocket import MAX_MESSAGE, WebSocketTransport
from p2pfl.wire.frame import OversizeError

pytestmark = pytest.mark.sockets

NODE = Identity.from_seed(bytes(32))
CONTINUATION, BINARY = 0x0, 0x2
FIN, RSV1 = 0x80, 0x40


def frame(opcode: int, payload: bytes, flags: int = 0) -> bytes:
    """A frame of a client (RFC 6455, section 5.2), masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else struct.pack("!BQ", 0x80 | 127, size)
    return bytes([flags | opcode]) + length + bytes(4) + payload


class Visitor:
    """A WebSocket made by hand, and why the node has turned it away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusals: list[LinkError]) -> None:
        self.answer = ""
        self._reader = reader
        self._writer = writer
        self._refusals = refusals

    async def upgrade(self, path: str) -> None:
        """Offer to compress, as browsers do."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET /{path} HTTP/1.1", "Host: here", "Connection: Upgrade", "Upgrade: websocket",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Extensions: permessage-deflate",
            f"Sec-WebSocket-Protocol: {', '.join(offered_subprotocols())}",
        )  # fmt: skip
        self._writer.write("\r\n".join((*lines, "", "")).encode())
        self.answer = (await self._reader.readuntil(b"\r\n\r\n")).decode()

    async def say(self, *frames: bytes) -> None:
        for each in frames:
            self._writer.write(each)
            await self._writer.drain()

    async def refusal(self) -> LinkError:
        """Wait until the node has ended the connection."""
        with suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass
        (error,) = self._refusals
        return error


@asynccontextmanager
async def visitor(patience_seconds: float = 600) -> AsyncIterator[Visitor]:
    """At the door of a node that waits so long for a handshake: by default it is no time limit that ends anything."""
    transport = WebSocketTransport(NODE, trust=Open(), limits=LinkLimits(handshake_seconds=patience_seconds))
    refusals: list[LinkError] = []
    transport.refused = lambda address, error: refusals.append(error)
    listener = await transport.listen("127.0.0.1:0", lambda link: None)
    place, _, path = listener.addresses[0].removeprefix("ws://").partition("/")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(place.rpartition(":")[2]))
    try:
        async with asyncio.timeout(20):
            found = Visitor(reader, writer, refusals)
            await found.upgrade(path)
            assert found.answer.startswith("HTTP/1.1 101 ")
            yield found
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        await listener.close()


async def test_nothing_is_unpacked() -> None:
    """A deflate bomb: 200 MB of zeros in 200 kB. Compression was offered and not agreed upon."""
    press = zlib.compressobj(9, wbits=-15)
    bomb = b"".join([*(press.compress(bytes(1 << 20)) for _ in range(200)), press.flush(zlib.Z_SYNC_FLUSH)])
    async with visitor() as stranger:
        assert "permessage-deflate" not in stranger.answer
        await stranger.say(frame(BINARY, bomb[:-4], FIN | RSV1))
        assert "the WebSocket protocol was broken" in str(await stranger.refusal())


async def test_a_million_pieces_of_a_message_are_no_more_than_its_bytes() -> None:
    """Each of one byte: it ends where a message of one piece would."""
    async with visitor() as stranger:
        with suppress(ConnectionError):
            await stranger.say(frame(BINARY, b""))
            for _ in range(MAX_MESSAGE // 1000 + 1):
                await stranger.say(frame(CONTINUATION, b"x") * 1000)
        assert isinstance((await stranger.refusal()).__cause__, OversizeError)


async def test_pieces_without_anything_in_them_do_not_go_on_for_ever() -> None:
    async with visitor(patience_seconds=0.2) as stranger:
        with pytest.raises(ConnectionError):
            await stranger.say(frame(BINARY, b""))
            while True:
                await stranger.say(frame(CONTINUATION, b"") * 1000)
        assert "handshake" in str(await stranger.refusal())


async def test_a_claimed_length_is_enough_to_be_refused() -> None:
    async with visitor() as stranger:
        await stranger.say(bytes([FIN | BINARY]) + struct.pack("!BQ", 0x80 | 127, 1 << 40) + bytes(4))
        assert isinstance((await stranger.refusal()).__cause__, OversizeError)
