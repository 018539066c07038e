"""A model's weights as one flat float32 vector, with a view for every parameter.

    parameters that train, in the module's order | floating-point buffers (running statistics of batch normalisation)

- A parameter that is shared by several layers appears once, under its first name.
- Parameters that do not train (`requires_grad` is False) are left out: they never change, so they need not travel.
- Integer buffers (batch normalisation's `num_batches_tracked`) are left out: an average of counters means nothing.
- Weights with four dimensions lie channels-last inside the vector, which makes convolutions about 1.4 times as fast
  on a CPU. The order of elements is therefore the layout's own, and not that of a state dict. A module that looks at
  activations by `view` in their usual order cannot be run so; its weights lie as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from p2pfl.errors import ConfigError
from p2pfl.learn.arrays import Laid, vector_hash

__all__ = ["Entry", "Layout", "as_buffer", "bind", "flatten", "from_buffer", "is_finite", "model_hash"]

_FLOAT32 = np.dtype("<f4")
_DLPACK = (1, 0)  # the first version that knows of read-only memory


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one parameter or buffer lies in the flat vector. Strides and offset count elements."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The map between a module's tensors and one flat vector; equal for equal architectures."""

    entries: tuple[Entry, ...]
    numel: int  # elements of the whole vector
    trainable: int  # how many entries, from the first, are parameters; the rest are buffers

    @classmethod
    def of(cls, module: nn.Module, *, channels_last: bool = True) -> Layout:
        """Read the layout off a module. `channels_last`: of weights with four dimensions.

        Raises ConfigError for a tensor that is no float32.
        """
        parameters = _parameters(module)
        entries: list[Entry] = []
        offset = 0
        for name, tensor in chain(parameters, _buffers(module)):
            if tensor.dtype != torch.float32:
                raise ConfigError(f"model tensor {name!r} is {tensor.dtype}; convert the module with .float()")
            entries.append(Entry(name, tuple(tensor.shape), _dense_stride(tensor, channels_last), offset))
            offset += tensor.numel()
        if not parameters:
            raise ConfigError(f"model {type(module).__name__} has no parameter that trains; give it one")
        return cls(tuple(entries), offset, len(parameters))

    @property
    def trainable_numel(self) -> int:
        """How many leading elements of the vector are parameters; the rest are buffers."""
        return sum(entry.numel for entry in self.entries[: self.trainable])

    @property
    def schema(self) -> Laid:
        """Name, shape and strides of every entry: what two peers must agree on before they exchange vectors."""
        return tuple((entry.name, entry.shape, entry.stride) for entry in self.entries)

    @property
    def digest(self) -> str:
        """SHA-256 of the schema, in hex."""
        return hashlib.sha256(json.dumps(self.schema).encode()).hexdigest()

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views into `flat`, one per entry, in order. Raises ConfigError if its length or type is wrong."""
        if flat.shape != (self.numel,) or flat.dtype != torch.float32:
            found = f"{flat.dtype} of shape {tuple(flat.shape)}"
            raise ConfigError(f"the flat vector is {found}; this model needs torch.float32 of shape ({self.numel},)")
        return [flat.as_strided(e.shape, e.stride, flat.storage_offset() + e.offset) for e in self.entries]

    def rows(self, matrix: Tensor) -> list[Tensor]:
        """Views (rows, ...) into a matrix with a flat vector in each row, which may be longer, one for each entry."""
        return [
            matrix.as_strided(
                (len(matrix), *e.shape), (matrix.stride(0), *e.stride), matrix.storage_offset() + e.offset
            )
            for e in self.entries
        ]

    def tensors(self, module: nn.Module) -> list[Tensor]:
        """The module's own tensors in the layout's order. Raises ConfigError naming the first that differs."""
        found = dict(chain(_parameters(module), _buffers(module)))
        for entry in self.entries:
            shape = tuple(found[entry.name].shape) if entry.name in found else None
            if shape != entry.shape:
                have = "is missing" if shape is None else f"has shape {shape}"
                raise ConfigError(
                    f"model tensor {entry.name!r} {have} where the layout has {entry.shape}; build both the same way"
                )
        extra = next((name for name in found if name not in {entry.name for entry in self.entries}), None)
        if extra is not None:
            raise ConfigError(f"model tensor {extra!r} is not in the layout; build both the same way")
        return [found[entry.name] for entry in self.entries]


def flatten(module: nn.Module, layout: Layout | None = None) -> Tensor:
    """A new flat vector with the module's present values, by default in the layout that is read off it."""
    layout = layout or Layout.of(module)
    flat = torch.empty(layout.numel)
    for view, tensor in zip(layout.views(flat), layout.tensors(module), strict=True):
        view.copy_(tensor.detach())
    return flat


def bind(module: nn.Module, flat: Tensor) -> None:
    """Make the module's tensors views into `flat`: training the module then trains the vector, and no copy is made."""
    layout = Layout.of(module)
    for tensor, view in zip(layout.tensors(module), layout.views(flat), strict=True):
        tensor.data = view


def as_buffer(flat: Tensor) -> memoryview:
    """The bytes of a float32 vector, read-only and not copied. The vector must not be written to afterwards."""
    return memoryview(flat.detach().numpy().data).cast("B").toreadonly()


def from_buffer(buffer: memoryview, numel: int) -> Tensor:
    """A vector of `numel` float32 over the bytes of `buffer`, not copied: it must not be written to.

    Raises ConfigError if the buffer has another length.
    """
    if buffer.nbytes != 4 * numel:
        raise ConfigError(f"the buffer has {buffer.nbytes} bytes; {numel} float32 take {4 * numel}")
    origin: object = buffer.obj
    if isinstance(origin, np.ndarray) and origin.nbytes == buffer.nbytes and origin.dtype == _FLOAT32:
        vector = origin.base
        if isinstance(vector, Tensor) and vector.shape == (numel,):
            return vector  # it never left the process
    # By way of DLPack because torch.frombuffer warns about every read-only buffer, and the links hand out no others.
    return from_dlpack(np.frombuffer(buffer, dtype=_FLOAT32).__dlpack__(max_version=_DLPACK))


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, without an allocation."""
    if tensor.numel() == 0 or math.isfinite(tensor.sum().item()):  # NaN and infinity stay visible in a sum
        return True
    low, high = torch.aminmax(tensor)  # it may be the sum alone that is too large
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in module.named_buffers() if tensor.is_floating_point()]


def _dense_stride(tensor: Tensor, channels_last: bool) -> tuple[int, ...]:
    order = torch.channels_last if tensor.dim() == 4 and channels_last else torch.contiguous_format
    return torch.empty_like(tensor, device="meta", memory_format=order).stride()


def model_hash(params: Tensor) -> str:
    """A digest of a flat vector's bytes: equal if and only if the models are equal to the last bit."""
    return vector_hash(params.detach().numpy())
