"""A model and data of one's own: a torch module by import path, a CSV file, a column that says whose rows they are.

Four hospitals predict from age, pressure and smoking who falls ill. What is in a course file is plain values, so a
course can be built in Python just as well; `course.json` in a run folder, or a TOML file, says the same.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from p2pfl.app.build import prepare
from p2pfl.app.config import Config, TopologySpec
from p2pfl.app.simulate import simulate
from p2pfl.courses.fedavg import FedAvgSettings
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec

HOSPITALS = ("north", "south", "east", "west")


class Net(nn.Module):
    """Any module will do. `input_shape` and `outputs` are handed over because the constructor names them."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(input_shape[0], width)
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.first(x)))
        return logits


def write_patients(path: Path) -> None:
    draw = random.Random(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["hospital", "age", "pressure", "smoker", "outcome"])
        for _ in range(1200):
            hospital, smokes = draw.randrange(4), draw.random() < 0.3
            age = draw.gauss(45 + 6 * hospital, 12)  # hospitals differ
            pressure = draw.gauss(110 + 0.4 * age, 10)
            risk = 0.08 * (age - 55) + 0.06 * (pressure - 132) + (2.5 if smokes else -1)
            ill = risk + draw.gauss(0, 0.5) > 0
            writer.writerow(
                [
                    HOSPITALS[hospital],
                    f"{age:.0f}",
                    f"{pressure:.0f}",
                    "yes" if smokes else "no",
                    "ill" if ill else "well",
                ]
            )


def course(patients: Path) -> Config[FedAvgSettings]:
    return Config(
        FedAvgSettings(rounds=15, evaluate="both"),
        seed=1,
        topology=TopologySpec(n=1 + len(HOSPITALS)),
        data=DataSpec(str(patients), label="outcome", group="hospital", standardise=True),
        partition=PartitionSpec("natural", holdout=0.2),
        model=ModelSpec(f"{__file__}:Net", parameters={"width": 8}),
        train=TrainSpec(epochs=2, batch_size=16, lr=0.1),
    )


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        patients = Path(folder) / "patients.csv"
        write_patients(patients)
        setup = prepare(course(patients))
        print(f"{setup.dataset!r}\n{setup.model!r}")
        outcome = simulate(setup)
    for done in outcome.rounds[::5] + outcome.rounds[-1:]:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in done.metrics.items())
        print(f"round {done.round:2}  {shown}")
    print(f"{outcome.params.numel()} weights, {outcome.bytes / 1e3:.0f} kB over the network")


if __name__ == "__main__":
    main()
