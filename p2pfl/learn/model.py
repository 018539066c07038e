"""A module, its layout and its loss, bound together once and used for any number of clients."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset
from p2pfl.learn.lookup import load_callable, unknown
from p2pfl.learn.models import MODELS
from p2pfl.learn.params import Layout, flatten, is_finite
from p2pfl.learn.specs import ModelSpec

__all__ = ["LOSSES", "Loss", "Model", "build_model"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets of a batch to the mean loss, a scalar."""


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs.reshape(targets.shape), targets)


def _bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets.to(outputs.dtype))


LOSSES: Mapping[str, Loss] = {"cross_entropy": functional.cross_entropy, "mse": _mse, "bce": _bce}

# torch's default generator belongs to the whole process: whoever seeds it keeps the others out until it is restored.
_default_generator = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """How examples become a loss, as a function of one flat vector.

    The module is a machine that vectors are put into, and holds nothing between two uses. One thread at a time can
    use it, others wait; give each thread a `copy` to let them run side by side.
    """

    module: nn.Module
    layout: Layout
    loss: Loss
    initial: Tensor  # the weights that the module was made with
    draws: bool  # whether a forward pass in training takes random numbers, as dropout does
    _tensors: list[Tensor]  # the module's own, in the layout's order
    _unshared: list[tuple[Tensor, Tensor]]  # integer buffers that the layout leaves out, each with its first value
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sound: dict[int, ref[Tensor]] = field(default_factory=dict)  # vectors that were found to be finite, by id

    @classmethod
    def of(cls, module: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Model:
        """Bind a module, and try it on a batch (x, y) of at least two examples.

        Raises ConfigError if the module or the loss cannot take the batch, or give something else than a mean loss.
        """
        layout = Layout.of(module)
        unshared = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_floating_point()]
        initial = flatten(module, layout)
        draws = _try(module, loss, x, y)
        model = cls._bound(module, layout, loss, initial, draws, unshared)
        try:
            with model.using(initial.clone(), training=True):
                loss(module(x), y)
        except RuntimeError:  # a `view` of what a convolution gives, which lies in another order now
            layout = Layout.of(module, channels_last=False)
            model = cls._bound(module, layout, loss, flatten(module, layout), draws, unshared)
        return model

    @classmethod
    def _bound(
        cls,
        module: nn.Module,
        layout: Layout,
        loss: Loss,
        initial: Tensor,
        draws: bool,
        unshared: list[tuple[Tensor, Tensor]],
    ) -> Model:
        model = cls(module, layout, loss, initial, draws, layout.tensors(module), unshared)
        model._bind(initial)
        return model

    def is_sound(self, flat: Tensor) -> bool:
        """Whether all numbers of a vector are finite. One that many clients of this process get is looked at once."""
        known = self._sound.get(id(flat))
        if known is not None and known() is flat:
            return True
        if not is_finite(flat):
            return False
        at = id(flat)
        self._sound[at] = ref(flat, lambda _: self._sound.pop(at, None))
        return True

    def copy(self) -> Model:
        """The same model over a module of its own, for another thread. The initial weights are shared."""
        with self._lock:
            module = copy.deepcopy(self.module)
        unshared = [buffer for buffer in module.buffers() if not buffer.is_floating_point()]
        kept = [(buffer, first) for buffer, (_, first) in zip(unshared, self._unshared, strict=True)]
        twin = Model(module, self.layout, self.loss, self.initial, self.draws, self.layout.tensors(module), kept)
        twin._bind(self.initial)
        return twin

    def redrawn(self, seed: int) -> Tensor:
        """Other weights to begin with, drawn in the ways of the module's layers.

        What a layer without `reset_parameters` holds is as in `initial`.
        """
        flat = self.initial.clone()
        with self.using(flat, training=False), torch.no_grad(), _seeded(seed):
            for layer in self.module.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
        return flat

    @contextmanager
    def using(self, flat: Tensor, *, training: bool, seed: int = 0) -> Iterator[list[Tensor]]:
        """Put `flat` into the module for the length of the block, and give the parameters to differentiate by.

        What is done to the parameters (and, in training, to running statistics) is done to `flat`. `seed` rules what
        the module draws. Raises ConfigError if the vector does not fit.
        """
        with self._lock:
            self._bind(flat)
            for buffer, first in self._unshared:
                buffer.copy_(first)
            if self.module.training is not training:
                self.module.train(training)
            try:
                with _seeded(seed) if self.draws and training else nullcontext():
                    yield self._tensors[: self.layout.trainable]
            finally:
                self._bind(self.initial)

    def _bind(self, flat: Tensor) -> None:
        for tensor, view in zip(self._tensors, self.layout.views(flat), strict=True):
            tensor.data = view

    def __repr__(self) -> str:
        return f"<Model {type(self.module).__name__}, {self.layout.numel:,} numbers, {self.layout.digest[:8]}>"


def build_model(spec: ModelSpec, dataset: Dataset, seed: int) -> Model:
    """The model that `spec` names, shaped for `dataset`. Equal seeds give equal bytes, whatever was drawn before.

    Raises ConfigError for an unknown name, for parameters that the model does not take, and for a model or loss that
    does not fit the data.
    """
    loss_name = spec.loss
    if loss_name == "auto":
        loss_name = "cross_entropy" if dataset.classes else "mse"
    outputs = len(dataset.classes) if dataset.classes and loss_name not in ("bce", "mse") else 1
    constructor = _find("model.name", spec.name, MODELS)
    keywords = _keywords(spec, constructor, {"input_shape": dataset.input_shape, "outputs": outputs})
    with _seeded(seed):
        try:
            module = constructor(**keywords)
        except TypeError as error:
            raise ConfigError(f"model {spec.name!r} does not take the model.parameters given: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.name {spec.name!r} gives a {type(module).__name__}; it must give a torch.nn.Module")
    x, y = dataset.batch(dataset.train_indices[:2])
    return Model.of(module, _find("model.loss", loss_name, LOSSES), x, y)


def _find(field_name: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in known:
        return known[name]
    if ":" in name:
        return load_callable(field_name, name)
    raise unknown(field_name, name, known)


def _keywords(spec: ModelSpec, constructor: Callable[..., Any], inferred: Mapping[str, object]) -> dict[str, object]:
    try:
        taken = inspect.signature(constructor).parameters
    except ValueError as error:
        raise ConfigError(
            f"model.name {spec.name!r} is a built-in; it must be a torch.nn.Module of your own"
        ) from error
    keywords = {name: value for name, value in inferred.items() if name in taken} | dict(spec.parameters)
    if spec.hidden:
        if "hidden" not in taken:
            raise ConfigError(
                f"model.hidden is set, but model {spec.name!r} has no hidden layers to size; leave it out"
            )
        keywords["hidden"] = spec.hidden
    return keywords


def _try(module: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> bool:
    """Run one batch as in training; whether the module drew random numbers."""
    with _seeded(0), torch.no_grad():
        before = torch.random.get_rng_state()
        try:
            value = loss(module.train()(x), y)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"model {type(module).__name__} or its loss cannot take examples of shape {tuple(x.shape[1:])} and "
                f"targets of {y.dtype} {tuple(y.shape[1:])} ({reason}); change model or model.loss"
            ) from error
        if value.dim() != 0:
            raise ConfigError(f"model.loss gives a tensor of shape {tuple(value.shape)}; it must give the batch's mean")
        return not torch.equal(before, torch.random.get_rng_state())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with _default_generator:
        state = torch.random.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.random.set_rng_state(state)
