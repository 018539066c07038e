"""JWINS: nodes send of their models the wavelet coefficients that have changed most since they were last sent.

A. Dhasade, A.-M. Kermarrec, R. Pires, R. Sharma, M. Vujasinovic, J. Wigger: "Get More for Less in Decentralized
Learning Systems", ICDCS 2023, https://arxiv.org/abs/2306.04377.

With y what was trained from x, c the Haar coefficients of y, and V how far each has changed, zero at first:

    V <- V + haar(y - x);   draw alpha;   S <- the alpha d places where |V| is largest;   send c at S;   V <- 0 at S

Each neighbour's coefficients that did not come are taken to be one's own; then they are mixed as in D-PSGD, and
transformed back. Nothing is known of others from one round to the next: graphs may change, and messages may be lost.

Deviations: places go in the code of Elias and Fano and values as float32, where the paper has Elias' gamma code and
fpzip; the vector is filled up with zeros to a multiple of 2^levels; running statistics of normalisation layers are sent
as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.learn.model import Model
from p2pfl.learn.params import as_buffer, from_buffer, is_finite
from p2pfl.learn.sparsify import Places
from p2pfl.learn.train import FitResult
from p2pfl.learn.wavelet import haar, padded, unhaar
from p2pfl.wire.tensor import Schema, Tensors, TensorSpec

__all__ = ["JWINS", "JwinsSettings", "Ranked"]

_MOST_LEVELS = 16


@dataclass(frozen=True, slots=True)
class JwinsSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "jwins"
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 1.0)
    """Of the coefficients each node sends one of these shares, drawn anew in every round."""
    levels: int = 4
    """Of the wavelet transform; 0: the numbers of the model themselves."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        fit = all(0 < fraction <= 1 for fraction in self.fractions)
        require(
            bool(self.fractions) and fit,
            f"course.fractions is {list(self.fractions)}; give one share or more, each in (0, 1]",
        )
        fit = 0 <= self.levels <= _MOST_LEVELS
        require(fit, f"course.levels is {self.levels}; it must lie between 0 and {_MOST_LEVELS}")


class _Chosen(Parts):
    """Coefficients with zeros where they are not sent, ones where they are, and running statistics as they are."""

    def __init__(self, model: Model, settings: JwinsSettings) -> None:
        numel = model.layout.trainable_numel
        self.coefficients = padded(numel, settings.levels)
        super().__init__(model, params=self.coefficients, chosen=self.coefficients, buffers=model.layout.numel - numel)
        self.counts = [max(1, round(fraction * self.coefficients)) for fraction in settings.fractions]
        self._codes = {self._schema(Places(self.coefficients, count)): count for count in self.counts}
        self.schemas = tuple(self._schema(Places(self.coefficients, count)) for count in self.counts)
        self.schema = self.schemas[0]

    def tensors(self, vector: Tensor) -> Tensors:
        values, chosen, buffers = self.split(vector).values()
        where = chosen.nonzero()[:, 0]
        places = Places(self.coefficients, len(where))
        placed = [places.encode(where)] if len(where) < self.coefficients else []
        sent = [*placed, values[where], buffers]
        return Tensors(self._schema(places), tuple(as_buffer(each) for each in sent if len(each)))

    def vector(self, tensors: Tensors, *, finite: bool = True) -> Tensor:
        if tensors.schema not in self._codes:
            raise RemoteProtocolError(f"{tensors} came where {', '.join(map(str, self.schemas))} were agreed")
        places = Places(self.coefficients, self._codes[tensors.schema])
        vector = torch.zeros(self.numel)
        values, chosen, buffers = self.split(vector).values()
        if places.count == self.coefficients:
            where = torch.arange(self.coefficients)
        else:
            try:
                where = places.decode(torch.frombuffer(bytearray(tensors[places.spec.name]), dtype=torch.uint8))
            except ValueError as error:
                raise RemoteProtocolError(f"the coefficients that came cannot be placed: {error}") from error
        values[where], chosen[where] = from_buffer(tensors["values"], places.count), 1
        if len(buffers):
            buffers.copy_(from_buffer(tensors["buffers"], len(buffers)))
        if finite and not is_finite(vector):
            raise RemoteProtocolError("a model with NaN or infinite numbers came")
        return vector

    def _schema(self, places: Places) -> Schema:
        schema = [TensorSpec("values", "f32", (places.count,))]
        if places.count < self.coefficients:
            schema.insert(0, places.spec)
        if self.sizes["buffers"]:
            schema.append(TensorSpec("buffers", "f32", (self.sizes["buffers"],)))
        return tuple(schema)


class Ranked(Adapt):
    """One node's side of JWINS."""

    def __init__(self, learner: Learner, settings: JwinsSettings) -> None:
        self._chosen = _Chosen(learner.model, settings)
        super().__init__(self._chosen)
        self._levels = settings.levels
        self._trainable = learner.model.layout.trainable_numel
        self._seed = learner.seed, learner.seat
        self._round = 0
        self._change = torch.zeros(self._chosen.coefficients)  # V
        self._own = self._change  # c, in a round

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        self._round = round
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        self._own = haar(trained[: self._trainable], self._levels)
        change = self._change + haar((trained - params)[: self._trainable], self._levels)
        rng = torch.Generator().manual_seed(seed_of(*self._seed, "jwins", self._round))
        count = self._chosen.counts[int(torch.randint(len(self._chosen.counts), (1,), generator=rng))]
        chosen = torch.zeros_like(change)
        chosen[torch.topk(change.abs(), count, sorted=False).indices] = 1
        self._change = change * (1 - chosen)
        return self.parts.join(params=self._own * chosen, chosen=chosen, buffers=trained[self._trainable :])

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        return torch.cat(
            (unhaar(self._whole(mixed), self._levels, self._trainable), self.parts.split(mixed)["buffers"])
        )

    def shown(self, vector: Tensor) -> Tensor:
        """Its coefficients, and so as far from those of others as the models are."""
        return self._whole(vector)

    def restart(self) -> None:
        self._change = torch.zeros_like(self._change)

    def state(self) -> RoleState:
        return {"change": self._change}

    def resume(self, state: RoleState) -> None:
        self._change = as_tensor(state["change"])

    def _whole(self, vector: Tensor) -> Tensor:
        """With our own coefficients for what is not there of it."""
        parts = self.parts.split(vector)
        return parts["params"] + (1 - parts["chosen"]) * self._own


def _steps(place: Place) -> Ranked:
    return Ranked(place.learner, place.settings)


JWINS = mixing("jwins", JwinsSettings, _steps)
