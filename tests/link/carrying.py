"""Two ends of a tunnel in one process, and who carries between them: honest, or as a test has it."""

from __future__ import annotations

from collections.abc import Callable

from p2pfl.crypto.identity import Identity
from p2pfl.errors import LinkTruncated
from p2pfl.link.base import CloseCode, LinkLimits, error_of_close
from p2pfl.link.secure import SecuritySettings
from p2pfl.link.trust import Open
from p2pfl.link.tunnel import TunnelSocket

ALICE, BOB = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2))
RELAY = "relay" * 10
LIMITS = LinkLimits()


def security(identity: Identity, **options: object) -> SecuritySettings:
    return SecuritySettings(identity=identity, trust=Open(), **options)


class Line:
    """The way of one end, straight to the other end."""

    def __init__(self) -> None:
        self.far: TunnelSocket
        self.down = False
        self.carried: list[bytes] = []
        self.room: list[int] = []
        self.codes: list[CloseCode] = []
        self.change: Callable[[bytes], bytes] = bytes  # what a hostile relay does with a message

    async def carry(self, number: int, message: bytes | bytearray) -> None:
        if self.down:
            raise LinkTruncated("down")
        self.carried.append(bytes(message))
        self.far.arrived(number, memoryview(self.change(bytes(message))))

    async def make_room(self, size: int) -> None:
        self.room.append(size)
        self.far.room_made(size)

    async def end(self, code: CloseCode) -> None:
        self.codes.append(code)
        self.far.ended(error_of_close(code))


def tunnel(window: int = 1 << 20) -> tuple[TunnelSocket, TunnelSocket, Line, Line]:
    """Both ends, and their ways."""
    out, back = Line(), Line()
    near, far = TunnelSocket(out, window), TunnelSocket(back, window)
    out.far, back.far = far, near
    return near, far, out, back
