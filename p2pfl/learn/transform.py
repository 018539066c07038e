"""Update pipelines: what turns a vector into fewer bytes, and back, composed as optax composes its transformations.

    chain(numel, top_k(0.01), qsgd(4))

A stage makes a shorter vector of a vector, and notes aside, in a compact type, what it takes to go back; the next stage
goes on with the shorter one. What is left after the last is sent as float32. All are pure values: what has to be
remembered from one vector to the next goes in and comes out as a state, and chance comes from a generator that is
handed in. The sizes of what is sent depend on the length of the vector alone, so that peers can agree on them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from p2pfl.wire.tensor import Schema, TensorSpec

__all__ = [
    "Chain",
    "Ef21",
    "Encoded",
    "ErrorFeedback",
    "NoState",
    "Payload",
    "Stage",
    "Step",
    "Transform",
    "TransformState",
    "chain",
    "finite",
    "pack",
    "packed_bytes",
    "unpack",
]

TransformState = Mapping[str, Tensor]
"""What is remembered from one vector to the next, by name; empty before the first. Tensors are not written to."""

Payload = tuple[Tensor, ...]
"""Flat tensors in the order of a schema, of the types that it names."""

_REST = "values"
_ERROR = "error"
_KNOWN = "known"
_INNER = "inner."  # before the names of what the pipeline below remembers


class Step(NamedTuple):
    """What a stage makes of a vector."""

    aside: Payload  # what it takes to go back
    rest: Tensor  # float32, for the next stage
    state: TransformState


class Stage(Protocol):
    """One step of a pipeline, for vectors of one length."""

    @property
    def schema(self) -> Schema:
        """What is noted aside."""

    @property
    def rest(self) -> int:
        """The length of the vector for the next stage."""

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Step:
        """A step forth. `vector` is flat, float32 and finite, and is not written to."""

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        """The step back, into new memory. Raises ValueError for what no vector is encoded as."""


class NoState(ABC):
    """What a stage has in common with others that remember nothing."""

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Step:
        aside, rest = self.split(vector, rng)
        return Step(aside, rest, {})

    @abstractmethod
    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        """What is noted aside, and what is for the next stage."""


class Encoded(NamedTuple):
    """What is sent for a vector, and what is remembered for the next."""

    payload: Payload
    state: TransformState


class Transform(Protocol):
    """A whole pipeline, for vectors of one length."""

    @property
    def schema(self) -> Schema:
        """What is sent: flat tensors of fixed sizes."""

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Encoded:
        """What is sent for a vector, which is flat, float32 and finite, and is not written to."""

    def decode(self, payload: Payload) -> Tensor:
        """The vector that was sent, or nearly: new memory. Raises ValueError for what no vector is encoded as."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages one after the other."""

    stages: tuple[Stage, ...]
    rest: int
    """How many float32 are left after the last stage."""

    @property
    def schema(self) -> Schema:
        aside = [
            TensorSpec(f"{at}.{spec.name}", spec.dtype, spec.shape)
            for at, stage in enumerate(self.stages)
            for spec in stage.schema
        ]
        return (*aside, TensorSpec(_REST, "f32", (self.rest,))) if self.rest else tuple(aside)

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Encoded:
        payload: list[Tensor] = []
        after: dict[str, Tensor] = {}
        for at, stage in enumerate(self.stages):
            name = f"{at}."
            own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            aside, vector, own_after = stage.encode(vector, own, rng)
            payload += aside
            after |= {name + key: value for key, value in own_after.items()}
        return Encoded((*payload, vector) if self.rest else tuple(payload), after)

    def decode(self, payload: Payload) -> Tensor:
        vector = payload[-1] if self.rest else torch.empty(0)
        end = len(payload) - bool(self.rest)
        for stage in reversed(self.stages):
            start = end - len(stage.schema)
            vector = stage.decode(payload[start:end], vector)
            end = start
        return vector


def chain(numel: int, *stages: Callable[[int], Stage]) -> Chain:
    """A pipeline for vectors of `numel` numbers, of stages that are told how long their vectors are.

    >>> chain(10).schema
    (TensorSpec(name='values', dtype='f32', shape=(10,)),)
    """
    made: list[Stage] = []
    for stage in stages:
        made.append(stage(numel))
        numel = made[-1].rest
    return Chain(tuple(made), numel)


@dataclass(frozen=True, slots=True)
class ErrorFeedback:
    """A pipeline that sends with each vector what it has withheld of those before.

    S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi: "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", ICML 2019, https://arxiv.org/abs/1901.09847. The pipeline has to be a contraction, as top-k is:
    the mean of |decode(encode(v)) - v|^2 is less than |v|^2.
    """

    inner: Transform

    @property
    def schema(self) -> Schema:
        return self.inner.schema

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Encoded:
        wanted = vector + state[_ERROR] if _ERROR in state else vector
        own = {name.removeprefix(_INNER): value for name, value in state.items() if name != _ERROR}
        payload, after = self.inner.encode(wanted, own, rng)
        error = wanted - self.inner.decode(payload)
        return Encoded(payload, {_ERROR: error, **{_INNER + name: value for name, value in after.items()}})

    def decode(self, payload: Payload) -> Tensor:
        return self.inner.decode(payload)


@dataclass(frozen=True, slots=True)
class Ef21:
    """A pipeline that sends how each vector differs from what is known of those before.

    P. Richtárik, I. Sokolov, I. Fatkhullin: "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
    Feedback", NeurIPS 2021, https://arxiv.org/abs/2106.05203. With g what is known, zero at first, and v the vector:

        c <- C(v - g), which is sent;   g <- g + c

    What `decode` gives is c: who receives it adds it to what it knows, of this sender or of the mean of all of them.
    The pipeline has to be a contraction, and every vector has to arrive.
    """

    inner: Transform

    @property
    def schema(self) -> Schema:
        return self.inner.schema

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Encoded:
        known = state.get(_KNOWN, torch.zeros_like(vector))
        own = {name.removeprefix(_INNER): value for name, value in state.items() if name != _KNOWN}
        payload, after = self.inner.encode(vector - known, own, rng)
        known = known + self.inner.decode(payload)
        return Encoded(payload, {_KNOWN: known, **{_INNER + name: value for name, value in after.items()}})

    def decode(self, payload: Payload) -> Tensor:
        return self.inner.decode(payload)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) of so many bits each, uint8, as bytes (ceil(n bits / 8),). `bits` divides 8.

    >>> pack(torch.tensor([1, 0, 1, 1], dtype=torch.uint8), 1).tolist()
    [13]
    """
    each = 8 // bits
    if each == 1:
        return codes
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % each)).view(-1, each)
    packed = padded[:, 0].clone()
    for at in range(1, each):
        packed |= padded[:, at] << (at * bits)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The codes (count,) that were packed."""
    each = 8 // bits
    if each == 1:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (packed.unsqueeze(1) >> shifts) & ((1 << bits) - 1)
    return codes.view(-1)[:count]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return math.ceil(count * bits / 8)


def finite(tensors: Sequence[Tensor]) -> None:
    """Raises ValueError where a number is none."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError("numbers came that are NaN or infinite")
