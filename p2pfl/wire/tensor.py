"""Named arrays as raw little-endian memory, for any framework: no numpy and no torch is needed to carry them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from p2pfl.errors import MessageError, RemoteProtocolError

__all__ = ["ITEM_BYTES", "DType", "Located", "Schema", "TensorSpec", "Tensors", "describe", "parse", "schema_bytes"]

DType = Literal["bool", "i8", "u8", "i16", "u16", "f16", "bf16", "i32", "u32", "f32", "i64", "u64", "f64"]
ITEM_BYTES: Mapping[DType, int] = {
    "bool": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "i32": 4, "u32": 4, "f32": 4, "i64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_Extent = Annotated[int, Meta(ge=0, lt=1 << 48)]


class TensorSpec(NamedTuple):
    """What a tensor is, without its numbers. Of a peer's, at most 16 dimensions are taken."""

    name: str
    dtype: DType
    shape: Annotated[tuple[_Extent, ...], Meta(max_length=16)]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's memory."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


Schema = tuple[TensorSpec, ...]
"""The tensors of a message in their order: two nodes that agree on it can talk without asking for sizes again."""


def schema_bytes(schema: Schema) -> int:
    """Bytes of all tensors of a schema together.

    >>> schema_bytes((TensorSpec("w", "f32", (10, 3)), TensorSpec("steps", "i64", ())))
    128
    """
    return sum(spec.nbytes for spec in schema)


class Tensors(Mapping[str, memoryview]):
    """An ordered mapping from names to read-only bytes, with a dtype and a shape for each.

    The memory is taken by reference, never copied: who puts an array into a message does not write to it again.

    >>> t = Tensors((TensorSpec("w", "f32", (2,)),), (memoryview(bytes(8)),))
    >>> t["w"].nbytes, t.schema[0].shape
    (8, (2,))
    """

    __slots__ = ("buffers", "schema")

    def __init__(self, schema: Iterable[TensorSpec], buffers: Iterable[memoryview]) -> None:
        """Raises MessageError where the buffers are not just what the schema says."""
        self.schema: Schema = tuple(schema)
        self.buffers: tuple[memoryview, ...] = tuple([_flat(buffer) for buffer in buffers])
        sizes = _sizes(self.schema)
        if len(sizes) != len(self.buffers):
            raise MessageError(f"{len(sizes)} tensors are described, {len(self.buffers)} buffers are given")
        for size, spec, buffer in zip(sizes, self.schema, self.buffers, strict=True):
            if size != buffer.nbytes:
                raise MessageError(f"tensor {spec.name!r}: {spec} takes {size} bytes, not {buffer.nbytes}")

    def __getitem__(self, name: str) -> memoryview:
        for spec, buffer in zip(self.schema, self.buffers, strict=True):
            if spec.name == name:
                return buffer
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self.schema)

    def __len__(self) -> int:
        return len(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensors) and self.schema == other.schema and self.buffers == other.buffers

    __hash__ = None  # type: ignore[assignment]  # equal by content, which may be a hundred megabytes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def __repr__(self) -> str:
        shown = ", ".join(f"{s.name}: {s.dtype}{list(s.shape)}" for s in self.schema[:3])
        more = f", {len(self.schema) - 3} more" if len(self.schema) > 3 else ""
        return f"<Tensors {shown}{more}>"


@lru_cache(maxsize=1024)
def _sizes(schema: Schema) -> tuple[int, ...]:
    """Bytes of every tensor, for a schema that can be. It is looked at once, and not with every message."""
    for spec in schema:
        if spec.dtype not in ITEM_BYTES:
            raise MessageError(f"tensor {spec.name!r}: dtype {spec.dtype!r} is none of {', '.join(ITEM_BYTES)}")
    if len({spec.name for spec in schema}) < len(schema):
        raise MessageError("two tensors have one name")
    return tuple(spec.nbytes for spec in schema)


def _flat(buffer: memoryview) -> memoryview:
    if buffer.readonly and buffer.format == "B" and buffer.ndim == 1 and buffer.c_contiguous:
        return buffer
    if not buffer.nbytes:
        return memoryview(b"")  # a view with a zero in its shape cannot be cast
    if not buffer.c_contiguous:
        raise MessageError("the memory of a tensor is not contiguous: send a contiguous copy")
    return buffer.cast("B").toreadonly()


class Located(msgspec.Struct, forbid_unknown_fields=True):
    """How tensors stand in a head: what they are, and which of the packet's buffers is the first of them."""

    tensors: Schema
    at: Annotated[int, Meta(ge=0)]


def describe(schema: Schema, at: int) -> dict[str, object]:
    """Tensors whose first buffer is number `at`, as JSON values."""
    return {"tensors": [[name, dtype, list(shape)] for name, dtype, shape in schema], "at": at}


def parse(described: object) -> Located:
    """What `describe` gave, as it came from a peer. Raises RemoteProtocolError for anything else."""
    try:
        return msgspec.convert(described, Located, strict=True)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"tensors are not described as {{tensors, at}}: {error}") from error
