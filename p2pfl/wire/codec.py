"""Messages to bodies and back: JSON by orjson, types checked by msgspec, tensors as raw buffers beside the JSON.

orjson writes NaN as null and cannot write integers of more than 64 bits, so a body is checked before it is written.
What a peer sent is held against the message type to the last field: every deviation is one RemoteProtocolError that
names it.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import itertools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec
import orjson

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.wire.fields import WIRE_TYPES, fields_of
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet
from p2pfl.wire.tensor import Schema, Tensors, describe, parse, schema_bytes

__all__ = ["Body", "Incoming", "announced", "decode", "encode", "outline", "pack", "unpack"]

MessageT = TypeVar("MessageT", bound=Message)
_INT_BOUNDS = (-(1 << 63), (1 << 64) - 1)
_TENSOR_KEYS = {"tensors", "at"}  # a JSON object with just these keys describes tensors


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
        json = orjson.dumps(_plain(message, buffers))
    except _UnsendableError as error:
        raise MessageError(f"{message.tag}.{error.where}: {error.why}") from None
    except (TypeError, RecursionError) as error:
        raise MessageError(f"{message.tag} is nested too deeply: {error}") from error
    return Body(message.tag, json, tuple(buffers))


def decode(kind: type[MessageT], incoming: Incoming, agreed: Collection[Schema] = ()) -> MessageT:
    """Make the message of what was received. Raises RemoteProtocolError, naming the field, where it does not fit.

    `agreed`: the schemas that tensors may have; none given: any.
    A `__post_init__` of the message type may refuse values by TypeError or ValueError, to the same end.
    """

    def tensors(wanted: type, described: object) -> Tensors:
        if wanted is not Tensors:
            raise TypeError(f"{wanted} is not a wire type")
        try:
            located = parse(described)
            if agreed and located.tensors not in agreed:
                raise RemoteProtocolError(f"tensors of another shape than agreed: {outline(located.tensors)}")
            return Tensors(located.tensors, incoming.buffers[located.at : located.at + len(located.tensors)])
        except (MessageError, RemoteProtocolError) as error:
            raise ValueError(error) from error  # for msgspec, which adds where in the message it was

    try:
        _refuse_unknown(kind, incoming.fields)
        return msgspec.convert(incoming.fields, kind, strict=True, dec_hook=tensors)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"{kind.tag}: {error}") from error


def outline(schema: Schema) -> str:
    """A schema in at most 200 characters."""
    return ", ".join(f"{spec.name} {spec.dtype}{spec.shape}" for spec in schema[:3])[:200]


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
    if type(head) is list and len(head) == 4:
        kind, number, tag, fields = head
        if type(kind) is str and type(number) is int and number >= 0 and type(tag) is str and type(fields) is dict:
            return kind, number, Incoming(tag, fields, packet.buffers)
    raise RemoteProtocolError("a head is not [kind, id, tag, fields]")


def announced(head: bytes) -> Iterator[Schema]:
    """The schemas of all tensors that a head announces, for checks before memory is taken. RemoteProtocolError."""
    waiting: list[object] = list(unpack(Packet(head))[2].fields.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.keys() == _TENSOR_KEYS:
                schema = parse(value).tensors
                if schema_bytes(schema) >= 1 << 48:
                    raise RemoteProtocolError("tensors of more than 2^48 bytes are announced")
                yield schema
            else:
                waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


class _UnsendableError(Exception):
    """Where in a message, and why, something cannot be sent. The path grows as the recursion unwinds."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.where = ""
        self.why = why

    def under(self, name: str) -> _UnsendableError:
        self.where = f"{name}.{self.where}" if self.where else name
        return self


def _plain(value: Any, buffers: list[memoryview]) -> Any:
    """JSON values of anything that a message may hold; tensors go to `buffers`."""
    convert = _PLAIN.get(type(value))
    if convert is not None:
        return convert(value, buffers)
    if isinstance(value, enum.Enum):
        return _plain(value.value, buffers)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _named([(name, getattr(value, name)) for name in _field_names(type(value))], buffers)
    raise _UnsendableError(f"{type(value).__name__} is not a wire type: {WIRE_TYPES}")


def _same(value: Any, _: list[memoryview]) -> Any:
    return value


def _text(value: str, _: list[memoryview]) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _UnsendableError(f"a str has {value[error.start]!r}, half a character") from None
    return value


def _integer(value: int, _: list[memoryview]) -> int:
    if not _INT_BOUNDS[0] <= value <= _INT_BOUNDS[1]:
        raise _UnsendableError(f"{value} does not fit 64 bits; send it as a str")
    return value


def _real(value: float, _: list[memoryview]) -> float:
    if not math.isfinite(value):
        raise _UnsendableError(f"{value} is not a number that JSON has; send None, or leave the field out")
    return value


def _octets(value: bytes, _: list[memoryview]) -> str:
    return base64.b64encode(value).decode()


def _sequence(value: list[Any], buffers: list[memoryview]) -> list[Any]:
    return list(_named(enumerate(value), buffers).values())


def _mapping(value: dict[Any, Any], buffers: list[memoryview]) -> dict[Any, Any]:
    odd = next((key for key in value if type(key) is not str), None)
    if odd is not None:
        raise _UnsendableError(f"the key {odd!r} of a dict is no str")
    return _named(value.items(), buffers)


def _named(items: Iterable[tuple[Any, Any]], buffers: list[memoryview]) -> dict[Any, Any]:
    plain = {}
    for name, item in items:
        try:
            plain[name] = _plain(item, buffers)
        except _UnsendableError as error:
            raise error.under(str(name)) from None
    if plain.keys() == _TENSOR_KEYS:
        raise _UnsendableError("the names 'tensors' and 'at' alone mean Tensors; rename one, or add a third")
    return plain


def _tensors(value: Tensors, buffers: list[memoryview]) -> dict[str, object]:
    first = len(buffers)
    buffers.extend(value.buffers)
    return describe(value.schema, first)


_PLAIN: dict[type, Callable[[Any, list[memoryview]], Any]] = {
    bool: _same, type(None): _same, str: _text, int: _integer, float: _real, bytes: _octets,
    list: _sequence, tuple: _sequence, dict: _mapping, Tensors: _tensors,
}  # fmt: skip


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _refuse_unknown(kind: type, fields: dict[str, Any]) -> None:
    """Raise for a field that `kind` does not have, at any depth. msgspec passes over them, for dataclasses."""
    if _is_flat(kind) and fields.keys() <= fields_of(kind).keys():
        return
    for path in _unknown(kind, fields, ""):
        raise TypeError(f"it has no field {path[1:100]}")


def _unknown(wanted: Any, value: object, where: str) -> Iterator[str]:
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if isinstance(value, dict) and dataclasses.is_dataclass(wanted):
        known = fields_of(typing.cast("type", wanted))
        for name, item in value.items():
            yield from _unknown(known[name], item, f"{where}.{name}") if name in known else (f"{where}.{name}",)
    elif isinstance(value, dict) and origin is dict:
        for name, item in value.items():
            yield from _unknown(parts[1], item, f"{where}.{name}")
    elif isinstance(value, list) and origin in (list, tuple):
        each = parts if origin is tuple and parts[-1] is not Ellipsis else itertools.repeat(parts[0])
        for number, (part, item) in enumerate(zip(each, value, strict=False)):
            yield from _unknown(part, item, f"{where}.{number}")
    elif origin in (typing.Union, types.UnionType):
        for option in parts:
            yield from _unknown(option, value, where)


@functools.cache
def _is_flat(kind: type) -> bool:
    """Whether no dataclass lies within the fields of `kind`."""
    waiting = list(fields_of(kind).values())
    while waiting:
        wanted = waiting.pop()
        if dataclasses.is_dataclass(wanted):
            return False
        waiting.extend(typing.get_args(wanted))
    return True
