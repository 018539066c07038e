"""A route between two ends that take what they like: order, credit, and what is left when an end is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from p2pfl.errors import LinkClosed, RemoteProtocolError
from p2pfl.link.base import CloseCode
from p2pfl.link.tunnel import MAX_CARRIED, MESSAGE_COST
from p2pfl.node.carriage import Cargo, RoomMade, Route, TunnelEnded, straight, wrapped
from p2pfl.wire.codec import Incoming, decode, encode
from p2pfl.wire.tensor import Tensors

KINDS = {kind.tag: kind for kind in (Cargo, RoomMade, TunnelEnded)}
WINDOW = 10_000


class End:
    """A peer, and the connection to it, with room for so many messages."""

    def __init__(self, label: str, room: int = 1000) -> None:
        self.label = label
        self.told: list[Any] = []
        self.linked = True
        self.link = SimpleNamespace(relay="")
        self.session = SimpleNamespace(tells_left=room)
        self._more = asyncio.Event()

    def connection(self) -> End:
        if not self.linked:
            raise LinkClosed("gone")
        return self

    async def room_to_tell(self) -> End:
        while not self.connection().session.tells_left:
            self._more.clear()
            await self._more.wait()
        return self

    def tell(self, body: Any) -> None:
        assert self.session.tells_left > 0
        self.session.tells_left -= 1
        self.told.append(decode(KINDS[body.tag], Incoming(body.tag, orjson.loads(body.json), body.buffers)))

    def take(self, room: int) -> None:
        self.session.tells_left += room
        self._more.set()

    def lose(self) -> None:
        self.linked = False
        self._more.set()


class Spawner:
    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))


def route(a: End, b: End) -> tuple[Route, list[int]]:
    forgotten: list[int] = []
    return Route(Spawner(), 7, (a, b), WINDOW, forgotten.append), forgotten


def cargo(number: int, size: int = 100) -> Cargo:
    return Cargo(7, False, number, wrapped(bytes([number]) * size))


async def test_messages_pass_on_as_they_are_in_both_directions() -> None:
    a, b = End("a"), End("b")
    carried, _ = route(a, b)
    for number in range(3):
        carried.carry(a, cargo(number))
    carried.carry(b, cargo(9))
    assert b.told == [Cargo(7, True, n, wrapped(bytes([n]) * 100)) for n in range(3)]
    assert a.told == [Cargo(7, True, 9, wrapped(bytes([9]) * 100))]
    assert carried.other(a) is b
    assert carried.other(b) is a
    assert "a - b" in repr(carried)


async def test_what_an_end_does_not_take_waits_in_order_and_counts() -> None:
    a, b = End("a"), End("b", room=2)
    carried, _ = route(a, b)
    for number in range(5):
        carried.carry(a, cargo(number))
    assert [message.number for message in b.told] == [0, 1]
    assert carried.held == 3 * (100 + MESSAGE_COST)
    await asyncio.sleep(0)
    b.take(2)
    await asyncio.sleep(1)
    assert [message.number for message in b.told] == [0, 1, 2, 3]
    b.take(2)
    await asyncio.sleep(1)
    assert [message.number for message in b.told] == [0, 1, 2, 3, 4]
    assert carried.held == 0


async def test_credit_is_summed_up_while_there_is_no_room_and_goes_first() -> None:
    a, b = End("a", room=0), End("b")
    carried, _ = route(a, b)
    for number in range(4):
        carried.carry(a, cargo(number))
    carried.carry(b, cargo(8))
    for _ in range(3):
        carried.make_room(b, 500)
    a.take(2)
    await asyncio.sleep(1)
    assert [type(message) for message in a.told] == [RoomMade, Cargo]
    assert a.told[0] == RoomMade(7, True, 1500)


async def test_the_window_and_what_goes_beyond_it() -> None:
    a, b = End("a"), End("b")
    carried, _ = route(a, b)
    carried.carry(a, cargo(0, WINDOW - MESSAGE_COST - 1))
    carried.carry(a, cargo(1, 5))
    with pytest.raises(RemoteProtocolError, match="more than 10000 bytes"):
        carried.carry(a, cargo(2, 1))
    assert not carried.open
    assert b.told[-1] == TunnelEnded(7, True, CloseCode.PROTOCOL)
    carried.carry(a, cargo(3))  # what was sent before the end was known is passed over
    carried.make_room(b, 5)
    assert len(b.told) == 3
    assert not a.told


@pytest.mark.parametrize("size", [0, -1, 101 + MESSAGE_COST])
async def test_room_that_cannot_have_been_made(size: int) -> None:
    a, b = End("a"), End("b")
    carried, _ = route(a, b)
    carried.carry(a, cargo(0))
    with pytest.raises(RemoteProtocolError, match="than was in it"):
        carried.make_room(b, size)
    assert a.told == [TunnelEnded(7, True, CloseCode.PROTOCOL)]


async def test_room_lets_more_through() -> None:
    a, b = End("a"), End("b")
    carried, _ = route(a, b)
    for number in range(100):
        carried.carry(a, cargo(number))
        carried.make_room(b, 100 + MESSAGE_COST)
    assert len(b.told) == 100


async def test_the_place_is_free_when_the_other_end_has_been_told() -> None:
    a, b = End("a"), End("b", room=0)
    carried, forgotten = route(a, b)
    carried.carry(a, cargo(0))
    carried.end(a, CloseCode.REFUSED)
    assert carried.held == 0
    await asyncio.sleep(1)
    assert not forgotten
    b.take(1)
    await asyncio.sleep(1)
    assert b.told == [TunnelEnded(7, True, CloseCode.REFUSED)]
    assert set(forgotten) == {7}


async def test_the_place_is_free_when_the_other_end_is_lost_too() -> None:
    a, b = End("a"), End("b", room=0)
    carried, forgotten = route(a, b)
    carried.end(a, CloseCode.GONE)
    b.lose()
    await asyncio.sleep(1)
    assert set(forgotten) == {7}


async def test_an_end_that_turns_out_to_be_lost_ends_it() -> None:
    a, b = End("a"), End("b")
    carried, forgotten = route(a, b)
    b.lose()
    carried.carry(a, cargo(0))
    assert a.told == [TunnelEnded(7, True, CloseCode.GONE)]
    assert forgotten
    assert not carried.open


async def test_links_through_others_do_not_carry() -> None:
    a, b = End("a"), End("b")
    assert straight(b) is b
    b.link.relay = "somebody"
    carried, _ = route(a, b)
    carried.carry(a, cargo(0))
    assert not b.told
    assert a.told == [TunnelEnded(7, True, CloseCode.GONE)]


@pytest.mark.parametrize("data", [Tensors((), ()), wrapped(bytes(MAX_CARRIED + 1))])
def test_what_is_no_cargo(data: Tensors) -> None:
    with pytest.raises(ValueError, match="one buffer of at most"):
        Cargo(1, False, 0, data)


def test_cargo_is_not_copied() -> None:
    data = bytearray(b"sealed")
    (buffer,) = encode(Cargo(1, False, 0, wrapped(data))).buffers
    data[0] = 0
    assert buffer[0] == 0
