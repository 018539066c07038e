"""Whether a module is a chain of linear layers and activations, found by sending a symbol through its forward.

What the forward does with the symbol is written down, whoever wrote the module and however it is nested; anything that
a chain does not do ends the search, and is the reason given. torch.fx would do the same, but puts its own methods in
nn.Module while it traces, under the feet of other threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Never
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.learn.activations import Activation, elu, gelu, leaky_relu, relu, sigmoid, silu, tanh
from p2pfl.learn.params import Layout

__all__ = ["Chain", "Dense", "chain_of"]


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer: where its weight (outputs, inputs) and its bias stand among the layout's entries."""

    weight: int
    bias: int | None
    inputs: int
    outputs: int

    @property
    def entries(self) -> tuple[int, ...]:
        """Of its weight, and of its bias if it has one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a module does to a batch of flat examples."""

    layers: tuple[Dense | Activation, ...]
    flattens: bool  # whether examples may have any shape; else they are vectors

    @property
    def inputs(self) -> int:
        """Numbers in an example."""
        return next(layer.inputs for layer in self.layers if isinstance(layer, Dense))

    @property
    def outputs(self) -> int:
        """Numbers that come out for an example."""
        return next(layer.outputs for layer in reversed(self.layers) if isinstance(layer, Dense))

    @property
    def widths(self) -> int:
        """Numbers in all layers' outputs for one example."""
        dense = [layer.outputs for layer in self.layers if isinstance(layer, Dense)]
        return self.inputs + sum(dense)


def chain_of(module: nn.Module) -> Chain | str:
    """The chain that `module` is in training, or why it is none. Found once for each module."""
    return _found(ref(module))


@lru_cache(maxsize=256)
def _found(module: ref[nn.Module]) -> Chain | str:
    original = module()
    assert original is not None, "the caller holds it"
    try:
        # A copy of the structure over the same tensors: the original may be evaluated meanwhile, in another thread.
        shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(original.parameters(), original.buffers())}
        traced = copy.deepcopy(original, shared).train()
        layout = Layout.of(traced)
        trace = _Trace({id(tensor): at for at, tensor in enumerate(layout.tensors(traced))}, [])
        end = traced(_Symbol(trace, 0))
        return trace.chain(end)
    except _NoChain as reason:
        return str(reason)
    except Exception as error:  # noqa: BLE001 - a forward may fail in any way when it is handed what is no tensor
        return f"its forward cannot be followed ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


class _NoChain(Exception):
    """Why a module is no chain."""


class _Rows:
    """Stands for the number of examples in a batch, which a forward may only hand on."""

    def __eq__(self, other: object) -> bool:
        raise _NoChain("its forward looks at the batch's size")

    def __hash__(self) -> int:
        raise _NoChain("its forward looks at the batch's size")


@dataclass(slots=True)
class _Trace:
    entries: Mapping[int, int]  # from a tensor's identity to its place in the layout
    layers: list[Dense | Activation]
    flattens: bool = False
    flat_to: int | None = None  # the size that the forward has written down for a flat example

    def chain(self, end: object) -> Chain:
        if not isinstance(end, _Symbol) or end.at != len(self.layers):
            raise _NoChain("its forward does not give the last layer's output")
        dense = [layer for layer in self.layers if isinstance(layer, Dense)]
        if not dense:
            raise _NoChain("it has no linear layer")
        used = [at for layer in dense for at in layer.entries]
        if len(set(used)) < len(used):
            raise _NoChain("a linear layer is called twice, or shares its weight")
        if any(layer.inputs == 1 for layer in dense):  # the bits of torch's products of this shape depend on the batch
            raise _NoChain("a linear layer has a single input")
        if self.flat_to not in (None, dense[-1].outputs):
            raise _NoChain(f"its forward cuts outputs into pieces of {self.flat_to}")
        return Chain(tuple(self.layers), self.flattens)

    def entry(self, tensor: Tensor) -> int:
        try:
            return self.entries[id(tensor)]
        except KeyError:
            raise _NoChain("a linear layer has a frozen or computed weight") from None


class _Symbol:
    """Stands for a batch on its way through the layers."""

    def __init__(self, trace: _Trace, at: int) -> None:
        self.trace = trace
        self.at = at  # layers behind it

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> _Symbol:
        operation = _FUNCTIONS.get(func)
        if operation is None or not args or not isinstance(args[0], _Symbol):
            raise _NoChain(f"its forward uses {getattr(func, '__name__', func)}")
        return operation(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return _Shape()
        if name in _METHODS:
            return partial(_METHODS[name], self)
        raise _NoChain(f"its forward uses .{name}")

    def __bool__(self) -> Never:
        raise _NoChain("its forward looks at values")

    def __eq__(self, other: object) -> Never:
        raise _NoChain("its forward looks at values")

    def __hash__(self) -> Never:
        raise _NoChain("its forward looks at values")

    def __len__(self) -> Never:
        raise _NoChain("its forward looks at the batch's size")

    def then(self, layer: Dense | Activation) -> _Symbol:
        if self.at != len(self.trace.layers):
            raise _NoChain("its forward uses a value twice")
        self.trace.layers.append(layer)
        return _Symbol(self.trace, self.at + 1)


class _Shape:
    def __getitem__(self, dim: object) -> _Rows:
        if dim != 0:
            raise _NoChain("its forward looks at an example's shape")
        return _Rows()


def _linear(x: _Symbol, weight: Tensor, bias: Tensor | None = None) -> _Symbol:
    trace = x.trace
    outputs, inputs = weight.shape
    if trace.flat_to not in (None, inputs):
        raise _NoChain(f"its forward cuts examples into pieces of {trace.flat_to}")
    trace.flat_to = None
    return x.then(Dense(trace.entry(weight), None if bias is None else trace.entry(bias), inputs, outputs))


def _flatten(x: _Symbol, start_dim: int = 0, end_dim: int = -1) -> _Symbol:
    if (start_dim, end_dim) != (1, -1):
        raise _NoChain(f"its forward flattens from dimension {start_dim} to {end_dim}")
    x.trace.flattens = True
    return x


def _reshape(x: _Symbol, *shape: Any) -> _Symbol:
    rows, size = shape[0] if len(shape) == 1 else shape
    if isinstance(rows, _Rows) and not isinstance(size, _Rows):
        x.trace.flat_to = None if size == -1 else size
    elif isinstance(rows, int) and rows == -1 and isinstance(size, int):
        x.trace.flat_to = size
    else:
        raise _NoChain(f"its forward reshapes to {shape}")
    x.trace.flattens = True
    return x


def _size(x: _Symbol, dim: int | None = None) -> _Rows | _Shape:
    return _Shape() if dim is None else _Shape()[dim]


def _dropout(x: _Symbol, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Symbol:
    if p > 0 and training:
        raise _NoChain(f"it has dropout of {p}")
    return x


def _relu(x: _Symbol, inplace: bool = False) -> _Symbol:
    return x.then(relu())


def _tanh(x: _Symbol) -> _Symbol:
    return x.then(tanh())


def _sigmoid(x: _Symbol) -> _Symbol:
    return x.then(sigmoid())


def _silu(x: _Symbol, inplace: bool = False) -> _Symbol:
    return x.then(silu())


def _gelu(x: _Symbol, approximate: str = "none") -> _Symbol:
    if approximate != "none":
        raise _NoChain(f"its forward uses gelu with approximate={approximate!r}")
    return x.then(gelu())


def _elu(x: _Symbol, alpha: float = 1.0, inplace: bool = False) -> _Symbol:
    return x.then(elu(alpha))


def _leaky_relu(x: _Symbol, negative_slope: float = 0.01, inplace: bool = False) -> _Symbol:
    return x.then(leaky_relu(negative_slope))


_METHODS: Mapping[str, Callable[..., Any]] = {
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "size": _size,
    "contiguous": lambda x: x,
    "relu": _relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
}
_FUNCTIONS: Mapping[Any, Callable[..., _Symbol]] = {
    functional.linear: _linear,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    functional.dropout: _dropout,
    torch.relu: _relu,
    torch.relu_: _relu,
    functional.relu: _relu,
    torch.tanh: _tanh,
    functional.tanh: _tanh,
    torch.sigmoid: _sigmoid,
    functional.sigmoid: _sigmoid,
    functional.silu: _silu,
    functional.gelu: _gelu,
    functional.elu: _elu,
    functional.leaky_relu: _leaky_relu,
}
