"""Named arrays as raw little-endian memory, for any framework: no numpy and no torch is needed to carry them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from p2pfl.errors import MessageError, RemoteProtocolError

__all__ = ["ITEM_BYTES", "Schema", "TensorSpec", "Tensors", "schema_bytes"]

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "i32": 4, "u32": 4, "f32": 4, "i64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_MAX_RANK = 16


class TensorSpec(NamedTuple):
    """What a tensor is, without its numbers. `dtype` is a key of ITEM_BYTES."""

    name: str
    dtype: str
    shape: tuple[int, ...]

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
        self.buffers: tuple[memoryview, ...] = tuple(buffer.cast("B").toreadonly() for buffer in buffers)
        if len(self.schema) != len(self.buffers):
            raise MessageError(f"{len(self.schema)} tensors are described, {len(self.buffers)} buffers are given")
        if len({spec.name for spec in self.schema}) != len(self.schema):
            raise MessageError("two tensors have one name")
        for spec, buffer in zip(self.schema, self.buffers, strict=True):
            if spec.dtype not in ITEM_BYTES:
                raise MessageError(f"tensor {spec.name!r}: dtype {spec.dtype!r} is none of {', '.join(ITEM_BYTES)}")
            if spec.nbytes != buffer.nbytes:
                raise MessageError(f"tensor {spec.name!r}: {spec} takes {spec.nbytes} bytes, not {buffer.nbytes}")

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


def describe(schema: Schema) -> list[list[object]]:
    """A schema as JSON values."""
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in schema]


def parse(described: object) -> Schema:
    """The schema of JSON values that a peer sent. Raises RemoteProtocolError for anything else."""
    if not isinstance(described, list):
        raise RemoteProtocolError("a tensor description is not a list")
    return tuple(_parse_spec(item) for item in described)


def _parse_spec(item: object) -> TensorSpec:
    match item:
        case [str(name), str(dtype), list(shape)] if dtype in ITEM_BYTES and len(shape) <= _MAX_RANK:
            if all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
                return TensorSpec(name, dtype, tuple(shape))
    raise RemoteProtocolError("a tensor is not described as [name, dtype, shape]")
