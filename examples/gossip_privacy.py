"""What a curious node of a gossip finds out: it solves for what all others have learned, unless there is noise.

Eight nodes on a ring train in the first round, and then only mix. All that node 0 hears in four rounds is linear in the
eight models, with weights that everybody knows, and that is enough to tell them apart (El Mrini et al., ICML 2024,
https://arxiv.org/abs/2402.10001). With local differential privacy there are more unknowns than equations.
"""

from __future__ import annotations

import numpy as np
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.attacks.reconstruction import solve, view
from p2pfl.attacks.wiretap import Wiretap
from p2pfl.compute.inline import Inline
from p2pfl.courses.dpsgd import Model
from p2pfl.link.memory import MemoryLink
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World
from p2pfl.topology.mixing import Matrix
from p2pfl.wire.packet import Packet

NODES, ROUNDS = 8, 4
NOISE = {"mode": "ldp", "clip": 1.0, "noise_multiplier": 0.2}


def gossip(noise: dict[str, object]) -> tuple[Matrix, Matrix, Matrix]:
    """What all nodes have learned in the first round; what node 0 knows, and with which weights that is made of it."""
    train = {"lr": 0.1, "schedule": "step", "schedule_rounds": 1, "schedule_factor": 0.0}
    course = {"name": "dpsgd", "rounds": ROUNDS, "evaluate_every": ROUNDS}
    topology = {"family": "ring", "n": NODES}
    setup = prepare(from_mapping({"course": course, "topology": topology, "train": train, "privacy": noise}))
    world = World(NODES, setup.roles, Inline(), setup.config.network)
    ids = [world.peer_id(seat) for seat in range(NODES)]
    taps = {peer_id: Wiretap(peer_id, Model) for peer_id in ids}

    def watch(link: MemoryLink, packet: Packet) -> None:
        taps[link.remote](link, packet)

    world.memory.watch = watch
    run_virtual(world.run(lambda seconds, seat, event: None))
    vector, initial = setup.learner(0, Inline()).vector, setup.model.initial
    sent = {}
    for to, peer_id in enumerate(ids):
        for sender, message in taps[peer_id].heard:
            change = vector(message.params) - initial  # the rows of the weights sum to one
            sent[message.round, ids.index(sender), to] = change.double().numpy()
    graph = setup.topology.union
    inputs = [sent[0, seat, graph.neighbors(seat)[0]] for seat in range(NODES)]
    heard = [sent[round, seat, 0] for round in range(ROUNDS) for seat in graph.neighbors(0)]
    return np.stack(inputs), np.stack([inputs[0], *heard]), view(graph, 0, ROUNDS)


def main() -> None:
    torch.set_num_threads(1)
    learned, _, _ = gossip({})
    for name, noise in (("without noise", {}), ("with noise", NOISE)):
        _, known, weights = gossip(noise)
        found = solve(weights, known)
        error = np.linalg.norm(found.inputs[1:] - learned[1:]) / np.linalg.norm(learned[1:])
        print(f"{name}: solved for {len(found.known) - 1} others, relative error {error:.0e}")


if __name__ == "__main__":
    main()
