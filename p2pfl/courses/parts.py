"""What a course sends in one message, as one flat vector on either side and as named tensors between."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from p2pfl.courses.messages import MODEL
from p2pfl.errors import RemoteProtocolError
from p2pfl.learn.model import Model
from p2pfl.learn.params import as_buffer, from_buffer, is_finite
from p2pfl.wire.tensor import Schema, Tensors, TensorSpec, schema_bytes

__all__ = ["Parts"]


class Parts:
    """Named parts of a flat float32 vector, one after the other.

    A model alone is `Parts(model)`; with a control variate as long as it, `Parts(model, control=numel)`.
    """

    def __init__(self, model: Model, /, *, params: int | None = None, **more: int) -> None:
        """`params`: how much of the model is sent, if not all of it; `more`: the lengths of other parts."""
        self._model = model
        whole = model.layout.numel if params is None else params
        self.sizes: Mapping[str, int] = {MODEL: whole, **more}
        self._is_model = not more and whole == model.layout.numel
        self.schema: Schema = tuple(TensorSpec(name, "f32", (size,)) for name, size in self.sizes.items())
        self.schemas: tuple[Schema, ...] = (self.schema,)  # all that may be sent: what nodes agree on
        self.numel = sum(self.sizes.values())

    @property
    def nbytes(self) -> float:
        """Bytes of all tensors of one message, on average."""
        return sum(schema_bytes(schema) for schema in self.schemas) / len(self.schemas)

    def tensors(self, vector: Tensor) -> Tensors:
        """A vector as it is sent. It is passed by reference: do not write to it afterwards."""
        return Tensors(self.schema, tuple(as_buffer(part) for part in self.split(vector).values()))

    def packed(self, tensors: Tensors) -> Tensor:
        """What `tensors` was given, to be kept and sent again."""
        return self.vector(tensors, finite=False)

    def vector(self, tensors: Tensors, *, finite: bool = True) -> Tensor:
        """A received vector; one part is read in place. Raises RemoteProtocolError for other shapes than agreed, or for
        numbers that are none.

        `finite=False`: the caller sees to it that NaN and infinity do no harm.
        """
        if tensors.schema != self.schema:
            raise RemoteProtocolError(f"{tensors} came where {', '.join(map(str, self.schema))} was agreed")
        found = [from_buffer(tensors[name], size) for name, size in self.sizes.items()]
        vector = found[0] if len(found) == 1 else torch.cat(found)
        if finite and not (self._model.is_sound(vector) if self._is_model else is_finite(vector)):
            raise RemoteProtocolError("a model with NaN or infinite numbers came")
        return vector

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector's parts."""
        if len(self.sizes) == 1:
            return {MODEL: vector}
        ends = accumulate(self.sizes.values())
        return {name: vector[end - size : end] for (name, size), end in zip(self.sizes.items(), ends, strict=True)}

    def join(self, **parts: Tensor) -> Tensor:
        """The vector of these parts; one part is the vector itself."""
        if len(self.sizes) == 1:
            return parts[MODEL]
        return torch.cat([parts[name].reshape(-1) for name in self.sizes])

    def __repr__(self) -> str:
        return f"<Parts {', '.join(f'{name} {size}' for name, size in self.sizes.items())}>"
