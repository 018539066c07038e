"""Compressed courses: any rule of two halves, with what goes down and up turned into fewer bytes on the way.

An update is sent as its difference to what the client was sent. What goes down is sent as its difference to the initial
model, which everybody has: so it does not matter which rounds a client has seen. Parts that are no longer than a few
numbers, and running statistics of normalisation layers, go as they are.

Error feedback is each client's own: an update that it has sent and that comes too late is lost, as without compression.

With `compress.up.memory = "ef21"` the server knows the mean h of what it knows of all its N clients, and gets of the
cohort S only what is new: h <- h + (1/N) sum over S of c_i then stands for the mean of the updates. EF21-PP of
I. Fatkhullin, I. Sokolov, E. Gorbunov, Z. Li, P. Richtárik: "EF21 with Bells & Whistles: Practical Algorithmic
Extensions of Modern Error Feedback", 2021, https://arxiv.org/abs/2110.03294.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.messages import MODEL
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Central, Local, Rule, Trained
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.learn.compression import CompressSpec, DownSpec
from p2pfl.learn.data import Shard
from p2pfl.learn.entropy import Codec, EntropyCoder, Tally, codec
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.params import Layout, as_buffer, is_finite
from p2pfl.learn.transform import Transform, TransformState
from p2pfl.wire.tensor import DType, Schema, Tensors, TensorSpec, schema_bytes

__all__ = ["Coded", "Squeezed", "compressed"]

Pipeline = Callable[[int, Layout | None], Transform]
"""For vectors of a length, and with the layout that they have, where it is known."""

_CODEC = "codec."  # before the names of what a pipeline remembers
_PACKED = "packed"
_KNOWN = "codec.known"
_LARGE = 1 << 18  # numbers, which take milliseconds to encode
_TYPES: dict[DType, torch.dtype] = {
    "u8": torch.uint8, "u16": torch.uint16, "i32": torch.int32, "i64": torch.int64, "f16": torch.float16,
    "bf16": torch.bfloat16, "f32": torch.float32,
}  # fmt: skip


class _Piece(NamedTuple):
    """A stretch of the vector that is encoded by itself; without a pipeline it goes as it is."""

    name: str
    start: int
    stop: int
    transform: Transform | None

    @property
    def schema(self) -> Schema:
        if self.transform is None:
            return (TensorSpec(self.name, "f32", (self.stop - self.start,)),)
        return tuple(spec._replace(name=f"{self.name}.{spec.name}") for spec in self.transform.schema)


class Coded(Parts):
    """Parts that are sent encoded: what `encode` gives of a vector is for `tensors`, and `vector` decodes."""

    def __init__(
        self, plain: Parts, model: Model, pipeline: Pipeline, codec: Codec | None = None, tally: Tally | None = None
    ) -> None:
        """`codec`: goes over all that is encoded; `tally`: is told what came of that.

        Raises ConfigError where the pipeline does not fit what is sent.
        """
        self.sizes = plain.sizes
        self._pieces = tuple(_pieces(plain, model, pipeline))
        self._schemas = [piece.schema for piece in self._pieces]
        self.schema = tuple(each for schema in self._schemas for each in schema)
        self.numel = plain.numel
        self._whole = schema_bytes(self.schema)
        self._entropy = None if codec is None else EntropyCoder(codec, self._whole)
        self._tally = tally
        self.schemas = (self.schema, *map(_packed, [] if self._entropy is None else self._entropy.lengths))

    @property
    def nbytes(self) -> float:
        """Before entropy coding."""
        return self._whole

    def encode(self, vector: Tensor, state: RoleState, seed: int) -> tuple[Tensor, RoleState]:
        """What `tensors` takes, as bytes, and what is to be remembered for the next vector."""
        rng = torch.Generator().manual_seed(seed)
        sent: list[Tensor] = []
        after: dict[str, Tensor] = {}
        for piece in self._pieces:
            part, name = vector[piece.start : piece.stop], f"{piece.name}."
            if piece.transform is None:
                sent.append(part)
                continue
            own: TransformState = {
                key.removeprefix(name): as_tensor(value) for key, value in state.items() if key.startswith(name)
            }
            payload, own_after = piece.transform.encode(part, own, rng)
            sent += payload
            after |= {name + key: value for key, value in own_after.items()}
        whole = torch.cat([each.contiguous().view(torch.uint8) for each in sent])
        if self._entropy is not None:
            whole = torch.frombuffer(bytearray(self._entropy.pack(bytes(as_buffer(whole)))), dtype=torch.uint8)
        return whole, after

    @property
    def coded(self) -> int:
        """How many numbers of the model, which comes first, are encoded."""
        return self._pieces[0].stop

    def of_coded(self, vector: Tensor) -> Tensor:
        """The vector with zero for what is sent as it is."""
        found = vector.clone()
        for piece in self._pieces:
            if piece.transform is None:
                found[piece.start : piece.stop] = 0
        return found

    def decode(self, packed: Tensor) -> Tensor:
        """The vector that whoever gets this has."""
        return self._decoded(Coded.tensors(self, packed))

    def tensors(self, vector: Tensor) -> Tensors:
        """What `encode` gave, as it is sent."""
        whole = as_buffer(vector)
        if whole.nbytes < self._whole:
            return Tensors(_packed(whole.nbytes), (whole,))
        return self._split(whole)

    def packed(self, tensors: Tensors) -> Tensor:
        return torch.cat([_read(tensors[spec.name], "u8") for spec in tensors.schema])

    def vector(self, tensors: Tensors, *, finite: bool = True) -> Tensor:
        if tensors.schema not in self.schemas:
            raise RemoteProtocolError(f"{tensors} came where {', '.join(map(str, self.schema))} was agreed")
        vector = self._decoded(tensors)
        if finite and not is_finite(vector):
            raise RemoteProtocolError("a model with NaN or infinite numbers came")
        if self._entropy is not None and self._tally is not None:
            self._tally.add(tensors.nbytes, self._whole)
        return vector

    def _split(self, whole: memoryview) -> Tensors:
        at, buffers = 0, []
        for spec in self.schema:
            buffers.append(whole[at : at + spec.nbytes])
            at += spec.nbytes
        return Tensors(self.schema, buffers)

    def _decoded(self, tensors: Tensors) -> Tensor:
        """Raises RemoteProtocolError for bytes that no vector is encoded as."""
        if self._entropy is not None and tensors.schema != self.schema:
            try:
                tensors = self._split(memoryview(self._entropy.unpack(bytes(tensors[_PACKED]))))
            except ValueError as error:
                raise RemoteProtocolError(f"what came cannot be expanded: {error}") from error
        found: list[Tensor] = []
        for piece, schema in zip(self._pieces, self._schemas, strict=True):
            payload = tuple(_read(tensors[spec.name], spec.dtype) for spec in schema)
            try:
                found.append(payload[0] if piece.transform is None else piece.transform.decode(payload))
            except ValueError as error:
                raise RemoteProtocolError(f"what came for {piece.name} cannot be decoded: {error}") from error
        return torch.cat(found)


class Squeezed(Coded):
    """Coded parts for a node that goes on with what its neighbours will decode: `tensors` takes just that."""

    _newest: tuple[Tensor, Tensor]

    def squeeze(self, vector: Tensor, state: RoleState, seed: int) -> tuple[Tensor, RoleState]:
        """What others get of a vector, for `tensors` to send, and what is to be remembered for the next one."""
        packed, after = self.encode(vector, state, seed)
        decoded = self.decode(packed)
        self._newest = decoded, packed
        return decoded, after

    def tensors(self, vector: Tensor) -> Tensors:
        decoded, packed = self._newest
        assert vector is decoded, "only what was squeezed last is sent"
        return Coded.tensors(self, packed)


def _packed(length: int) -> Schema:
    """Of what was encoded, after entropy coding."""
    return (TensorSpec(_PACKED, "u8", (length,)),)


def _pieces(plain: Parts, model: Model, pipeline: Pipeline) -> Iterator[_Piece]:
    """Parts as long as that of the model are encoded, but for running statistics, which must not change their sign."""
    layout, whole = model.layout, plain.sizes[MODEL]
    require(
        whole == layout.numel or layout.trainable == len(layout.entries),
        "compress: only a part of the model is sent, and the model has running statistics, which must stay exact; "
        "leave out [compress], or take a model without such layers",
    )
    start = 0
    for name, size in plain.sizes.items():
        coded = layout.trainable_numel if size == layout.numel else size
        if size not in (whole, layout.trainable_numel):
            coded = 0
        if coded:
            known = layout if coded == layout.trainable_numel else None
            yield _Piece(name, start, start + coded, pipeline(coded, known))
        if coded < size:
            yield _Piece(f"{name}.buffers" if coded else name, start + coded, start + size, None)
        start += size


def _read(buffer: memoryview, dtype: DType) -> Tensor:
    """The numbers of a buffer, copied: it may begin anywhere."""
    return torch.frombuffer(bytearray(buffer), dtype=_TYPES[dtype]) if buffer.nbytes else torch.empty(0)


class _Codec:
    """What both halves know: how either direction is sent, and as the difference to what."""

    def __init__(self, learner: Learner, rule: Rule, spec: CompressSpec, tally: Tally | None) -> None:
        model = learner.model

        def coded(plain: Parts, spec: DownSpec) -> Parts:
            return plain if spec.plain else Coded(plain, model, spec.transform, codec(spec.entropy), tally)

        self.up, self.down = coded(rule.up, spec.up), coded(rule.down, spec.down)
        self.stateful, self.incremental = spec.up.stateful, spec.up.incremental
        self._seed, self._seat = learner.seed, learner.seat
        self._numel = rule.up.numel
        self._first = torch.empty(0)  # what all know that the server's half sends at first
        if isinstance(self.down, Coded):
            self._first = self.down.of_coded(rule.central().broadcast(model.initial, 0))
        alike = rule.up.sizes[MODEL] == rule.down.sizes[MODEL] and not rule.relative
        self._shared = self.up.coded if isinstance(self.up, Coded) and alike else 0

    def reference(self, received: Tensor) -> Tensor:
        """What an update is sent as the difference to."""
        reference = torch.zeros(self._numel)
        reference[: self._shared] = received[: self._shared]
        return reference

    def received(self, vector: Tensor) -> Tensor:
        """What the server's half has sent, from what came."""
        return vector + self._first if isinstance(self.down, Coded) else vector

    def downward(self, vector: Tensor, round: int) -> tuple[Tensor, Tensor]:
        """What is sent of what the server's half gives, and what clients get of it."""
        if not isinstance(self.down, Coded):
            return vector, vector
        packed, _ = self.down.encode(vector - self._first, {}, seed_of(self._seed, "down", round))
        return packed, self.received(self.down.decode(packed))

    async def upward(self, vector: Tensor, received: Tensor, round: int, state: RoleState) -> tuple[Tensor, RoleState]:
        """What is sent of an update, and what is remembered."""
        if not isinstance(self.up, Coded):
            return vector, {}
        difference, seed = vector - self.reference(received), seed_of(self._seed, "up", round, self._seat)
        if self._numel < _LARGE:
            return self.up.encode(difference, state, seed)
        return await asyncio.to_thread(self.up.encode, difference, state, seed)


class _Sender:
    """The server's half."""

    def __init__(self, inner: Central, codec: _Codec) -> None:
        self._inner = inner
        self._codec = codec
        self._reference: Tensor | None = None  # of the round that goes on
        self._known = torch.zeros(codec.up.numel)  # h, of EF21

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        sent, received = self._codec.downward(self._inner.broadcast(params, round), round)
        self._reference = self._codec.reference(received)
        return sent

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        assert self._reference is not None, "the round began with a broadcast"
        return self._inner.absorb(params, self._whole(mean, share) + self._reference, share, round)

    def serve(self, params: Tensor) -> Tensor:
        return self._inner.serve(params)

    def state(self) -> RoleState:
        return {**self._inner.state(), **({_KNOWN: self._known} if self._codec.incremental else {})}

    def resume(self, state: RoleState) -> None:
        if self._codec.incremental:
            self._known = as_tensor(state[_KNOWN])
        self._inner.resume({name: value for name, value in state.items() if name != _KNOWN})

    def _whole(self, mean: Tensor, share: float) -> Tensor:
        """The mean of the updates, from that of what was sent of them."""
        if not self._codec.incremental:
            return mean
        assert isinstance(self._codec.up, Coded), "only what is encoded is sent as what is new in it"
        new = self._codec.up.of_coded(mean)
        self._known = torch.add(self._known, new, alpha=share)
        return mean - new + self._known


class _Replier:
    """A client's half."""

    def __init__(self, inner: Local, codec: _Codec) -> None:
        self._inner = inner
        self._codec = codec
        self._state: RoleState = {}
        self.stateful = inner.stateful or codec.stateful

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        received = self._codec.received(received)
        trained = await self._inner.train(learner, received, round)
        packed, self._state = await self._codec.upward(trained.vector, received, round, self._state)
        return trained._replace(vector=packed)

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return await self._inner.personal(learner, served)

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        return await self._inner.evaluate(learner, served, shard)

    def state(self) -> RoleState:
        return {**self._inner.state(), **{_CODEC + name: value for name, value in self._state.items()}}

    def resume(self, state: RoleState) -> None:
        self._state = {name.removeprefix(_CODEC): state[name] for name in state if name.startswith(_CODEC)}
        self._inner.resume({name: value for name, value in state.items() if not name.startswith(_CODEC)})


def compressed(rule: Rule, learner: Learner, spec: CompressSpec, tally: Tally | None = None) -> Rule:
    """The same rule with what is sent compressed; itself, if nothing is to be. Raises ConfigError if that cannot be."""
    if spec.plain:
        return rule
    halves = _Codec(learner, rule, spec, tally)
    return replace(
        rule,
        down=halves.down,
        up=halves.up,
        central=lambda: _Sender(rule.central(), halves),
        local=lambda: _Replier(rule.local(), halves),
    )
