"""The table of handlers: what is taken, what is refused and how, and that nothing a handler raises gets through."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
import pytest

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.node.dispatch import Dispatch, HandlerError, Unready
from p2pfl.node.events import Event, HandlerFailed
from p2pfl.node.peer import Peer
from p2pfl.wire.codec import Incoming, encode, pack, unpack
from p2pfl.wire.frame import OversizeError
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.node.kit import Echo, Note, Ping, Pong

SCHEMA = (TensorSpec("w", "f32", (2,)),)


class Vector(Message):
    params: Tensors


class Nested(Message):
    parts: list[dict[str, Tensors]]


class Free(Message):
    """May hold what looks like a description of tensors."""

    data: dict[str, int]
    params: Tensors


class Wrong(Request[Pong]):
    how: str


class Role:
    def __init__(self) -> None:
        self.got: list[Message] = []

    @Vector.handler
    async def vector(self, message: Vector, peer: Peer) -> None:
        self.got.append(message)

    @Nested.handler
    async def nested(self, message: Nested, peer: Peer) -> None:
        self.got.append(message)

    @Free.handler
    async def free(self, message: Free, peer: Peer) -> None:
        self.got.append(message)

    @Wrong.handler
    async def wrong(self, ask: Wrong, peer: Peer) -> Pong:
        if ask.how == "type":
            return cast("Pong", Note(1))
        if ask.how == "none":
            return cast("Pong", None)
        if ask.how == "unsendable":
            return Pong(1 << 70)
        raise RemoteProtocolError("the handler says that the message is against the protocol")


class Sender:
    id = "sender"
    ending: str | None = ""

    def line_ending(self) -> str | None:
        return self.ending


PEER = cast("Peer", Sender())


def tensors(*shape: int) -> Tensors:
    spec = TensorSpec("w", "f32", shape)
    return Tensors((spec,), (memoryview(bytes(spec.nbytes)),))


def incoming(message: Message) -> Incoming:
    return unpack(pack("tell", 1, encode(message)))[2]


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def dispatch(told: list[Event]) -> Dispatch:
    dispatch = Dispatch(told.append)
    dispatch.add([Echo(), Role()])
    return dispatch


async def test_a_request_gives_its_encoded_reply(dispatch: Dispatch) -> None:
    body = await dispatch.run(PEER, incoming(Ping(1)), asked=True)
    assert body == encode(Pong(2))


async def test_a_statement_gives_nothing(dispatch: Dispatch) -> None:
    assert await dispatch.run(PEER, incoming(Note(1)), asked=False) is None


@pytest.mark.parametrize(
    ("message", "asked", "error"),
    [
        (Pong(1), True, HandlerError),  # nobody handles it
        (Pong(1), False, RemoteProtocolError),
        (Note(1), True, RemoteProtocolError),
        (Ping(1), False, RemoteProtocolError),
        (Wrong("by its own words"), True, RemoteProtocolError),
    ],
)
async def test_what_does_not_belong_is_refused(
    dispatch: Dispatch, told: list[Event], message: Message, asked: bool, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await dispatch.run(PEER, incoming(message), asked=asked)
    assert not told
    assert dispatch.failures == 0


async def test_before_the_roles_are_there_nobody_does_wrong(dispatch: Dispatch) -> None:
    dispatch.expecting = True
    assert await dispatch.run(PEER, incoming(Pong(1)), asked=False) is None
    with pytest.raises(Unready, match="nothing here handles 'Pong' yet"):
        await dispatch.run(PEER, incoming(Pong(1)), asked=True)
    dispatch.expecting = False
    with pytest.raises(RemoteProtocolError):
        await dispatch.run(PEER, incoming(Pong(1)), asked=False)
    with pytest.raises(HandlerError) as refused:
        await dispatch.run(PEER, incoming(Pong(1)), asked=True)
    assert not isinstance(refused.value, Unready)


@pytest.mark.parametrize(
    "fields", [{}, {"n": "1"}, {"n": 1.5}, {"n": None}, {"n": 1, "m": 2}, {"n": float("nan")}, {"n": 1 << 63, "n ": 0}]
)
async def test_fields_must_fit(dispatch: Dispatch, fields: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="Ping"):
        await dispatch.run(PEER, Incoming("Ping", fields, ()), asked=True)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Ping(-1), "ValueError: it is negative"),
        (Wrong("type"), "MessageError: the handler of Wrong gave a Note"),
        (Wrong("none"), "MessageError: the handler of Wrong gave a NoneType"),
        (Wrong("unsendable"), "MessageError: Pong.n"),
    ],
)
async def test_a_failing_handler_is_counted_and_told(
    dispatch: Dispatch, told: list[Event], message: Message, reason: str
) -> None:
    with pytest.raises(HandlerError, match=reason):
        await dispatch.run(PEER, incoming(message), asked=True)
    assert dispatch.failures == 1
    (event,) = told
    assert isinstance(event, HandlerFailed)
    assert (event.peer, event.message) == ("sender", message.tag)
    assert event.reason.startswith(reason)


async def test_failures_are_counted_also_where_too_many_were_told(
    dispatch: Dispatch, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    sender = Sender()
    for ending in (None, " ... and 1 more"):
        sender.ending = ending
        with pytest.raises(HandlerError, match=r"negative$"):
            await dispatch.run(cast("Peer", sender), incoming(Ping(-1)), asked=True)
    assert dispatch.failures == 2
    assert [str(event) for event in told] == ["Ping of sender failed here: ValueError: it is negative ... and 1 more"]
    assert [record.getMessage() for record in caplog.records] == ["handler of Ping failed ... and 1 more"]


async def test_cancellation_is_no_failure(dispatch: Dispatch, told: list[Event]) -> None:
    class Sleeper:
        @Slow.handler
        async def slow(self, message: Slow, peer: Peer) -> None:
            await asyncio.Event().wait()

    dispatch.add([Sleeper()])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await dispatch.run(PEER, incoming(Slow()), asked=False)
    assert not told


class Slow(Message):
    pass


class OtherPing(Request[Pong], tag="Ping"):
    pass


class OtherRole:
    @OtherPing.handler
    async def ping(self, ask: OtherPing, peer: Peer) -> Pong:
        return Pong(0)


@pytest.mark.parametrize("role", [Echo, OtherRole])
async def test_roles_that_do_not_fit_change_nothing(dispatch: Dispatch, role: type[Any]) -> None:
    with pytest.raises(MessageError, match="Ping"):
        dispatch.add([role()])
    assert await dispatch.run(PEER, incoming(Ping(1)), asked=True) == encode(Pong(2))


async def test_roles_can_be_added_later(dispatch: Dispatch) -> None:
    class Late:
        @Slow.handler
        async def slow(self, message: Slow, peer: Peer) -> None: ...

    with pytest.raises(RemoteProtocolError):
        await dispatch.run(PEER, incoming(Slow()), asked=False)
    dispatch.add([Late()])
    await dispatch.run(PEER, incoming(Slow()), asked=False)


@pytest.mark.parametrize("message", [Vector(tensors(2)), Nested([{"a": tensors(2)}])])
async def test_agreed_tensors_are_taken(dispatch: Dispatch, message: Message) -> None:
    dispatch.schemas.add(SCHEMA)
    await dispatch.run(PEER, incoming(message), asked=False)


@pytest.mark.parametrize("message", [Vector(tensors(3)), Nested([{"a": tensors(2), "b": tensors(3)}])])
async def test_other_tensors_are_not(dispatch: Dispatch, message: Message) -> None:
    await dispatch.run(PEER, incoming(message), asked=False)
    dispatch.schemas.add(SCHEMA)
    with pytest.raises(RemoteProtocolError, match=r"another shape than agreed: w f32\(3,\)"):
        await dispatch.run(PEER, incoming(message), asked=False)


async def test_data_that_looks_like_tensors_does_no_harm(dispatch: Dispatch) -> None:
    dispatch.schemas.add(SCHEMA)
    await dispatch.run(PEER, incoming(Free({"tensors": 5, "at": 1, "more": 0}, tensors(2))), asked=False)


def head_of(message: Message) -> bytes:
    return pack("tell", 1, encode(message)).head


def test_buffers_must_be_just_what_the_head_says(dispatch: Dispatch) -> None:
    assert not dispatch.admit(head_of(Vector(tensors(2))), (8,))  # it may be, and it was not agreed
    for sizes in ((), (9,), (8, 8), (4, 4)):
        with pytest.raises(RemoteProtocolError, match="not those of the tensors"):
            dispatch.admit(head_of(Vector(tensors(2))), sizes)


def test_once_something_was_agreed_nothing_else_is_taken(dispatch: Dispatch) -> None:
    dispatch.schemas.add(SCHEMA)
    assert dispatch.admit(head_of(Vector(tensors(2))), (8,))
    with pytest.raises(RemoteProtocolError, match="agreed"):
        dispatch.admit(_announcing(1 << 40), (1 << 42,))


def test_a_message_has_twice_what_was_agreed_at_most(dispatch: Dispatch) -> None:
    dispatch.schemas.update([SCHEMA, tensors(1).schema])
    assert dispatch.admit(head_of(Nested([{"a": tensors(2), "b": tensors(2)}])), (8, 8))
    with pytest.raises(OversizeError, match="20 bytes are over 2 times"):
        dispatch.admit(head_of(Nested([{"a": tensors(2), "b": tensors(2), "c": tensors(1)}])), (8, 8, 4))


def _announcing(extent: int) -> bytes:
    described = {"tensors": [["w", "f32", [extent]]], "at": 0}
    return orjson.dumps(["tell", 1, "Vector", {"params": described}])
