"""The work that every subject of a scenario does: data, initial weights, and who trains on what in which order.

It lies in a folder: `data.npz` and `course.json` for p2pfl, which draws the rest by itself; `work.safetensors`, with
everything written out, for all others. That both are the same work is not assumed: equal distances from the initial
weights show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from p2pfl.learn.models import MODELS

__all__ = ["SCENARIOS", "Scenario", "Work"]

State = dict[str, Tensor]
"""Weights by the names of a state dict."""


@dataclass(frozen=True)
class Scenario:
    """A course of federated averaging with plain SGD. All clients hold equally many examples, all batches are full."""

    about: str
    clients: int
    cohort: int
    examples: int
    rounds: int  # that are measured; one more comes before them
    epochs: int = 1
    batch: int = 20
    lr: float = 0.1
    model: str = "mlp"
    hidden: tuple[int, ...] = ()
    shape: tuple[int, ...] = (1, 28, 28)
    classes: int = 62
    partition: str = "iid"
    digits: bool = False  # real images, which clients draw with replacement; else random ones
    tolerance: float = 1e-4
    """How far, in relation, ||w - w0|| may be from that of the hand loop."""

    @property
    def test_examples(self) -> int:
        """How many examples the accuracy is measured on."""
        return 297 if self.digits else 4 * self.classes


def _digits(clients: int, cohort: int = 10) -> Scenario:
    about = f"8 x 8 digits, MLP 64-128-10, {clients:,} clients x 15, {cohort} a round, 5 epochs, batch 5"
    return Scenario(
        about, clients, cohort, 15, 30, epochs=5, batch=5, hidden=(128,), shape=(1, 8, 8), classes=10,
        partition="bootstrap", digits=True,
    )  # fmt: skip


SCENARIOS: Mapping[str, Scenario] = {
    "digits": _digits(100),
    "digits-10": _digits(10),
    "digits-1000": _digits(1_000),
    "digits-10000": _digits(10_000),
    "digits-wide": _digits(10_000, cohort=100),
    "fem": Scenario(
        "28 x 28, 62 classes, the CNN of the FedAvg paper, 100 clients x 40, 10 a round, 1 epoch, batch 20",
        100, 10, 40, 3, model="cnn",
        # The gradient of max pooling jumps: now and then rounding alone takes another pixel, and training enlarges what
        # follows. With few rounds at a small rate that is below 4e-5, and batches in a wrong order are 5e-3 apart.
        lr=0.02, tolerance=5e-4,
    ),
    "big": Scenario(
        "MLP 784-4096-4096-1024-62, 10 clients x 16, 10 a round, 1 step",
        10, 10, 16, 4, batch=16, hidden=(4096, 4096, 1024), lr=0.05,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A scenario, drawn. Rows are rows of `x` and `y`."""

    folder: Path
    scenario: Scenario
    x: Tensor  # (rows, *shape) float32
    y: Tensor  # (rows,) int64
    test_x: Tensor
    test_y: Tensor
    plan: Tensor  # (rounds, cohort, steps, batch): the rows that each client of each round trains on
    initial: State = field(repr=False)

    def module(self) -> nn.Module:
        """The model, with weights that are yet to be loaded."""
        keywords: dict[str, Any] = {"hidden": self.scenario.hidden} if self.scenario.hidden else {}
        return MODELS[self.scenario.model](self.scenario.shape, self.scenario.classes, **keywords)

    def distance(self, final: State) -> float:
        """||w - w0||, summed in double precision."""
        assert final.keys() == self.initial.keys()
        squares = [(final[name].double() - first.double()).square().sum() for name, first in self.initial.items()]
        return float(torch.stack(squares).sum().sqrt())

    def accuracy(self, final: State) -> float:
        """On the test part."""
        module = self.module()
        module.load_state_dict(final)
        with torch.no_grad():
            return float((module.eval()(self.test_x).argmax(1) == self.test_y).float().mean())

    @classmethod
    def read(cls, folder: Path) -> Work:
        """What `drawing.draw` has laid down."""
        scenario = msgspec.json.decode((folder / "scenario.json").read_bytes(), type=Scenario)
        tensors = load_file(folder / "work.safetensors")
        names = [name.removeprefix("initial.") for name in tensors if name.startswith("initial.")]
        initial = {name: tensors.pop(f"initial.{name}") for name in sorted(names, key=_place)}
        return cls(folder, scenario, initial=initial, **tensors)


def _place(name: str) -> tuple[str, bool]:
    """The order of a state dict, which a file of safetensors does not keep: layers by number, weight before bias."""
    layer, _, kind = name.rpartition(".")
    return layer, kind == "bias"
