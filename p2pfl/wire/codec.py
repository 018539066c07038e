"""Messages to bodies and back: JSON by orjson, types checked by msgspec, tensors as raw buffers beside the JSON.

orjson writes NaN as null and cannot write integers of more than 64 bits, so a body is checked before it is written. What
a peer sent is held against the message type to the last field: every deviation is one RemoteProtocolError that names it.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec
import orjson

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet
from p2pfl.wire.tensor import Schema, Tensors, describe, parse, schema_bytes

__all__ = ["Body", "Incoming", "announced", "decode", "encode", "pack", "unpack"]

MessageT = TypeVar("MessageT", bound=Message)
_INT_BOUNDS = (-(1 << 63), (1 << 64) - 1)


class Body(NamedTuple):
    """An encoded message. Encoded once, it can be sent to any number of peers."""

    tag: str
    json: bytes
    buffers: tuple[memoryview, ...]


class Incoming(NamedTuple):
    """A received message before its type is known: JSON values, and the buffers that its tensors lie in."""

    tag: str
    fields: dict[str, Any]
    buffers: tuple[memoryview, ...]


def encode(message: Message) -> Body:
    """Encode a message. Raises MessageError, naming the field, for a value that cannot be sent."""
    buffers: list[memoryview] = []
    try:
        plain = _plain(message, buffers)
    except _Unsendable as error:
        raise MessageError(f"{type(message).tag}.{error.where}: {error.why}") from None
    return Body(type(message).tag, orjson.dumps(plain), tuple(buffers))


def decode(kind: type[MessageT], incoming: Incoming) -> MessageT:
    """Make the message of what was received. Raises RemoteProtocolError, naming the field, where it does not fit."""
    unknown = next(_unknown(kind, incoming.fields, kind.tag), None)
    if unknown:
        raise RemoteProtocolError(f"{unknown} is no field of that message here")

    def tensors(wanted: type, described: object) -> Tensors:
        if wanted is not Tensors:
            raise RemoteProtocolError(f"{kind.tag} has a field of {wanted}, which is not a wire type")
        schema, first = _located(described)
        try:
            return Tensors(schema, incoming.buffers[first : first + len(schema)])
        except MessageError as error:
            raise RemoteProtocolError(f"{kind.tag}: {error}") from error

    try:
        return msgspec.convert(incoming.fields, kind, strict=True, dec_hook=tensors)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"{kind.tag}: {error}") from error
    except (TypeError, ValueError) as error:  # a __post_init__ of the message type refused the values
        raise RemoteProtocolError(f"{kind.tag}: {error}") from error


def pack(kind: str, number: int, body: Body | None = None, **fields: object) -> Packet:
    """A packet of the session's `kind` and id: the head is [kind, id, tag, fields]."""
    if body is None:
        return Packet(orjson.dumps([kind, number, "", fields]))
    return Packet(orjson.dumps([kind, number, body.tag, orjson.Fragment(body.json)]), body.buffers)


def unpack(packet: Packet) -> tuple[str, int, Incoming]:
    """The kind, the id and the content of a packet. RemoteProtocolError for what is no head of ours."""
    try:
        head = orjson.loads(packet.head)
    except orjson.JSONDecodeError as error:
        raise RemoteProtocolError("a head is not JSON") from error
    match head:
        case [str(kind), int(number), str(tag), dict(fields)] if type(number) is int and number >= 0:
            return kind, number, Incoming(tag, fields, packet.buffers)
    raise RemoteProtocolError("a head is not [kind, id, tag, fields]")


def announced(head: bytes) -> Iterator[Schema]:
    """The schemas of all tensors that a head announces, for checks before memory is taken. RemoteProtocolError."""
    waiting: list[object] = list(unpack(Packet(head))[2].fields.values())
    while waiting:
        match waiting.pop():
            case {"tensors": _, "at": _} as described if len(described) == 2:
                yield _located(described)[0]
            case dict(more):
                waiting.extend(more.values())
            case list(items):
                waiting.extend(items)


def _located(described: object) -> tuple[Schema, int]:
    match described:
        case {"tensors": listed, "at": int(first)} if type(first) is int and first >= 0:
            schema = parse(listed)
            if schema_bytes(schema) < 1 << 48:
                return schema, first
    raise RemoteProtocolError("tensors are not described as {tensors, at}")


class _Unsendable(Exception):
    """Where in a message, and why, something cannot be sent. The path grows as the recursion unwinds."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.where = ""
        self.why = why

    def under(self, name: str) -> _Unsendable:
        self.where = f"{name}.{self.where}" if self.where else name
        return self


def _plain(value: Any, buffers: list[memoryview]) -> Any:
    """JSON values of anything that a message may hold; tensors go to `buffers`."""
    convert = _PLAIN.get(type(value))
    if convert is not None:
        return convert(value, buffers)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _named(((name, getattr(value, name)) for name in _field_names(type(value))), buffers)
    raise _Unsendable(f"{type(value).__name__} is not a wire type; send numbers, str, bytes, lists, dicts or Tensors")


def _same(value: Any, _: list[memoryview]) -> Any:
    return value


def _integer(value: int, _: list[memoryview]) -> int:
    if not _INT_BOUNDS[0] <= value <= _INT_BOUNDS[1]:
        raise _Unsendable(f"{value} does not fit 64 bits; send it as a str")
    return value


def _real(value: float, _: list[memoryview]) -> float:
    if not math.isfinite(value):
        raise _Unsendable(f"{value} is not a number that JSON has; send None, or leave the field out")
    return value


def _octets(value: bytes, _: list[memoryview]) -> str:
    return base64.b64encode(value).decode()


def _sequence(value: list[Any], buffers: list[memoryview]) -> list[Any]:
    return [item for _, item in _named(enumerate(value), buffers).items()]


def _mapping(value: dict[Any, Any], buffers: list[memoryview]) -> dict[Any, Any]:
    odd = next((key for key in value if type(key) is not str), None)
    if odd is not None:
        raise _Unsendable(f"the key {odd!r} of a dict is no str")
    return _named(value.items(), buffers)


def _named(items: typing.Iterable[tuple[Any, Any]], buffers: list[memoryview]) -> dict[Any, Any]:
    plain = {}
    for name, item in items:
        try:
            plain[name] = _plain(item, buffers)
        except _Unsendable as error:
            raise error.under(str(name)) from None
    return plain


def _tensors(value: Tensors, buffers: list[memoryview]) -> dict[str, object]:
    first = len(buffers)
    buffers.extend(value.buffers)
    return {"tensors": describe(value.schema), "at": first}


_PLAIN: dict[type, Callable[[Any, list[memoryview]], Any]] = {
    bool: _same, type(None): _same, str: _same, int: _integer, float: _real, bytes: _octets,
    list: _sequence, tuple: _sequence, dict: _mapping, Tensors: _tensors,
}  # fmt: skip


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise MessageError(f"{kind.__name__}: {error}; define message types at the top level of a module") from error
    return {name: hints[name] for name in _field_names(kind)}


def _unknown(wanted: Any, value: object, where: str) -> Iterator[str]:
    """Paths of fields that `wanted` does not have. msgspec passes over them, for dataclasses."""
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        if isinstance(value, dict):
            hints = _hints(wanted)
            for name, item in value.items():
                if name not in hints:
                    yield f"{where}.{name}"
                elif _is_nested(hints[name]):
                    yield from _unknown(hints[name], item, f"{where}.{name}")
    elif typing.get_origin(wanted) in (typing.Union, types.UnionType):
        for option in typing.get_args(wanted):
            yield from _unknown(option, value, where)
    elif isinstance(value, dict) and typing.get_origin(wanted) is dict:
        for name, item in value.items():
            yield from _unknown(typing.get_args(wanted)[1], item, f"{where}.{name}")
    elif isinstance(value, list) and typing.get_args(wanted):
        for item in value:
            yield from _unknown(typing.get_args(wanted)[0], item, where)


@functools.cache
def _is_nested(wanted: Any) -> bool:
    """Whether a dataclass lies anywhere within a field's type, so that the field must be looked into."""
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        return True
    return any(_is_nested(part) for part in typing.get_args(wanted) if isinstance(part, typing.Hashable))
