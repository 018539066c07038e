"""A model that also knows a prototype of each class: a point in the space of what goes into its last layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.model import Model
from p2pfl.learn.params import Entry, Layout
from p2pfl.learn.pieces import Frozen, frozen, layers_of

__all__ = ["Prototyped", "prototyped"]

_PROTOTYPES = "prototypes"
_INNER = "module."  # before the names of the model's own entries


@dataclass(frozen=True, slots=True, eq=False)
class Prototyped:
    """A model with prototypes, of shape (classes, width)."""

    pulled: Frozen
    """In which the model trains: by its loss, and by `pull` times the mean squared distance of each example to the
    prototype of its class, if that is known."""
    gathering: Frozen
    """In which only the prototypes train: one step at rate 1, from zeros, leads to each class's sum over the examples
    of what goes into the last layer, divided by the number of all examples."""
    classes: int
    width: int
    _trainable: int  # numbers of the model that train; its others follow behind the prototypes

    def pack(self, params: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
        """The whole vector, of the model's, of prototypes, and of ones for the classes (classes,) that have one."""
        return torch.cat((params[: self._trainable], prototypes.flatten(), params[self._trainable :], known))

    def unpack(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The model's vector, and the prototypes."""
        end = self._trainable + self.classes * self.width
        rest = vector[end : len(vector) - self.classes]
        return torch.cat((vector[: self._trainable], rest)), vector[self._trainable : end].view(self.classes, -1)


class _Near(nn.Module):
    """Gives the model's outputs, and beside them the squared distance of its features to each known prototype."""

    known: Tensor

    def __init__(self, module: nn.Module, head: str, classes: int, width: int) -> None:
        super().__init__()
        self.module = module
        self.prototypes = nn.Parameter(torch.zeros(classes, width))
        self.register_buffer("known", torch.ones(classes))
        self._features = torch.empty(0)
        module.get_submodule(head).register_forward_pre_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._features = inputs[0]

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.module(x)
        distances = (self._features[:, None] - self.prototypes).square().sum(2) * self.known
        self._features = torch.empty(0)  # the graph would live on in it
        return torch.cat((outputs, distances), 1)


def _pulled_loss(weight: float, outputs: Tensor, targets: Tensor) -> Tensor:
    logits, distances = outputs.chunk(2, 1)
    return functional.cross_entropy(logits, targets) + weight * _own(distances, targets)


def _gathering_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return _own(outputs.chunk(2, 1)[1], targets) / 2


def _own(distances: Tensor, targets: Tensor) -> Tensor:
    return distances.gather(1, targets[:, None]).mean()


@lru_cache(maxsize=8)
def prototyped(model: Model, pull: float) -> Prototyped:
    """`model` with prototypes. Equal arguments give the same object, so that clients share it.

    Raises ConfigError where the model does not end in a linear layer, or has another loss than cross_entropy.
    """
    layout, trainable = model.layout, model.layout.trainable_numel
    head = list(layers_of(layout))[-1]
    last = model.module.get_submodule(head)
    if not isinstance(last, nn.Linear) or model.loss is not functional.cross_entropy:
        raise ConfigError(
            "only models of classes that end in a linear layer have prototypes: take model.loss cross_entropy, and "
            "another model.name"
        )
    classes, width = last.out_features, last.in_features
    room = classes * width
    entries = [replace(entry, name=_INNER + entry.name) for entry in layout.entries]
    behind = [replace(entry, offset=entry.offset + room) for entry in entries[layout.trainable :]]
    prototypes = Entry(_PROTOTYPES, (classes, width), (width, 1), trainable)
    known = Entry("known", (classes,), (1,), layout.numel + room)
    order = (*entries[: layout.trainable], prototypes, *behind, known)
    whole = Layout(order, layout.numel + room + classes, layout.trainable + 1)
    module = _Near(model.copy().module, head, classes, width)
    counters = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_floating_point()]
    first = torch.cat((model.initial[:trainable], torch.zeros(room), model.initial[trainable:], torch.ones(classes)))
    near = Model(module, whole, _gathering_loss, first, model.draws, whole.tensors(module), counters)
    of_model = frozenset(entry.name for entry in entries)
    pulled = replace(near, loss=partial(_pulled_loss, pull / width))
    return Prototyped(frozen(pulled, frozenset({_PROTOTYPES})), frozen(near, of_model), classes, width, trainable)
