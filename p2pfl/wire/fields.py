"""What the fields of a message may be. Held against each type once, so that a mistake shows before anything is sent."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from p2pfl.errors import MessageError
from p2pfl.wire.tensor import Tensors

__all__ = ["WIRE_TYPES", "check_fields", "fields_of"]

WIRE_TYPES = "use bool, int, float, str, bytes, None, enums, Tensors, and lists, dicts or dataclasses of these"
_ATOMS = (bool, int, float, str, bytes, type(None), Tensors)


@functools.cache
def fields_of(kind: type) -> Mapping[str, Any]:
    """Names and types of a dataclass's fields. Raises MessageError for a type that is not known by its name."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise MessageError(f"{kind.__name__}: {error}; define message types at the top level of a module") from error
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def check_fields(kind: type) -> None:
    """Raises MessageError, naming the field, if a message type has one that cannot be carried."""
    odd = next(_odd(kind, kind.__name__, ()), None)
    if odd is not None:
        raise MessageError(f"{odd}, which is not a wire type: {WIRE_TYPES}")
    try:
        msgspec.json.Decoder(kind)  # compiles the type; refuses what JSON cannot tell apart
    except TypeError as error:
        raise MessageError(f"{kind.__name__}: {error}") from error


def _odd(wanted: Any, where: str, within: tuple[type, ...]) -> Iterator[str]:
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted in _ATOMS or wanted in within:
        return
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        for name, part in fields_of(wanted).items():
            yield from _odd(part, f"{where}.{name}", (*within, wanted))
    elif origin in (typing.Union, types.UnionType, list, tuple) or (origin is dict and parts[0] is str):
        for part in parts:
            yield from () if part is Ellipsis else _odd(part, where, within)
    elif origin is not typing.Literal and not (isinstance(wanted, type) and issubclass(wanted, enum.Enum)):
        yield f"{where} is {wanted}"
