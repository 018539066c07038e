"""Eight nodes without a server on virtual time, and how far their models are from one another.

D-PSGD (Lian et al., NeurIPS 2017, https://arxiv.org/abs/1705.09056) runs on four graphs. The consensus distance is the
mean square distance of the models from their mean: the better a graph is connected, the smaller it stays. A link
takes 50 ms here and every node trains a while, yet each run is over as soon as it has been computed.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from p2pfl import Event, RoundEnded
from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import from_mapping
from p2pfl.compute.inline import Inline
from p2pfl.courses.course import HoldsModel
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World
from p2pfl.topology.mixing import consensus_distance, mixing_matrix, spectral_gap

NODES, ROUNDS = 8, 12
SHOWN = range(2, ROUNDS + 1, 2)


def course(family: str) -> Setup:
    return prepare(
        from_mapping(
            {
                "course": {"name": "dpsgd", "rounds": ROUNDS, "evaluate_every": ROUNDS},
                "topology": {"family": family, "n": NODES},
                "partition": {"scheme": "dirichlet", "alpha": 0.2},
                "train": {"epochs": 1, "batch_size": 10, "lr": 0.1},
                "network": {"latency_ms": 50.0},
            }
        )
    )


class Consensus:
    """Watches all nodes: their models after every round, and the accuracies of the last."""

    def __init__(self, world: World) -> None:
        self.seconds = 0.0
        self.accuracies: list[float] = []
        self._world = world
        self._models: defaultdict[int, list[Tensor]] = defaultdict(list)  # by round: some nodes are ahead

    def __call__(self, seconds: float, seat: int, event: Event) -> None:
        self.seconds = seconds
        if isinstance(event, RoundEnded):
            [mixer] = (role for role in self._world.seats[seat].roles if isinstance(role, HoldsModel))
            self._models[event.round].append(mixer.params)
            self.accuracies += [event.metrics["accuracy"]] if "accuracy" in event.metrics else []

    def distance(self, after: int) -> float:
        return consensus_distance(torch.stack(self._models[after]).numpy())


def main() -> None:
    torch.set_num_threads(1)
    print("consensus distance after round")
    print(f"{'graph':12}{'gap':>6}" + "".join(f"{after:8}" for after in SHOWN))
    for family in ("chain", "ring", "hypercube", "full"):
        setup = course(family)
        world = World(NODES, setup.roles, Inline(), setup.config.network, setup.config.devices)
        consensus = Consensus(world)
        run_virtual(world.run(consensus))
        distances = "".join(f"{consensus.distance(after):8.3f}" for after in SHOWN)
        print(
            f"{family:12}{spectral_gap(mixing_matrix(setup.topology.union)):6.3f}{distances}  "
            f"worst accuracy {min(consensus.accuracies):.3f}, {consensus.seconds:.2f} virtual s"
        )


if __name__ == "__main__":
    main()
