"""What a coordinator that is curious, and one that cheats, find out about their clients, without and with protection.

Five clients learn digits on virtual time. Their coordinator follows the protocol and keeps what it hears: every update,
every update with noise (local differential privacy), or only their sum (secure aggregation, which hides whose an update
is, and not what is in the sum of so few). Then it cheats, to see one update instead of the sum.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from p2pfl import CourseError, Event
from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.attacks.coordinators import DoubleRevealServer, InconsistentServer, SeedsTaken, usurped
from p2pfl.attacks.gradients import implied_gradients
from p2pfl.attacks.inversion import invert
from p2pfl.attacks.leaks import label, layer_input
from p2pfl.attacks.membership import by_loss
from p2pfl.attacks.scores import auc, psnr
from p2pfl.attacks.wiretap import Wiretap
from p2pfl.compute.inline import Inline
from p2pfl.courses.messages import Update
from p2pfl.courses.secagg import AggregationLeft
from p2pfl.learn.data import Shard
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World

CLIENTS, LR = 5, 0.1
NOISE: dict[str, object] = {"mode": "ldp", "clip": 1.0, "noise_multiplier": 0.2}
MODES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("plain", {}),
    "noise": ("plain", NOISE),
    "secagg": ("secagg", {}),
}


def fedavg(mode: str, examples: int, epochs: int) -> Setup:
    secrecy, noise = MODES[mode]
    course = {"name": "fedavg", "rounds": 1, "privacy": secrecy, "weights": "equal", "evaluate": "none"}
    train = {"epochs": epochs, "batch_size": 10, "lr": LR}
    given = {"course": course, "topology": {"n": 1 + CLIENTS}, "train": train, "privacy": noise}
    setup = prepare(from_mapping(given))
    rows = setup.dataset.train_indices.split(examples)
    return replace(setup, shards={seat: Shard(setup.dataset, rows[seat]) for seat in range(1, 1 + CLIENTS)})


def eavesdrop(setup: Setup) -> list[Tensor]:
    """The clients' updates, by seat, as seat 0 gets to know them: each, or else their mean in the place of each."""
    world = World(setup.topology.n, setup.roles, Inline(), setup.config.network)
    tap = world.memory.watch = Wiretap(world.peer_id(0), Update)
    run_virtual(world.run(lambda seconds, seat, event: None))
    learner = setup.learner(0, Inline())
    seen = {heard.sender: learner.vector(heard.message.params) for heard in tap.heard}
    mean: Tensor = world.seats[0].roles[0].params
    return [seen.get(world.peer_id(seat), mean) for seat in setup.shards]


def curious(mode: str) -> str:
    """Mean scores over all clients: two ways to see a lone digit, its label; and who is in a shard of twenty."""
    lone, many = fedavg(mode, examples=1, epochs=1), fedavg(mode, examples=20, epochs=60)
    model, scores = lone.model, []
    for shard, update in zip(lone.shards.values(), eavesdrop(lone), strict=True):
        x, y = shard.dataset.batch(shard.indices)
        gradients = implied_gradients(model, model.initial, update, LR)
        leak = layer_input(gradients[0], gradients[1]).clamp(0, 1).reshape(x.shape)
        image = invert(model, model.initial, gradients, y, tuple(x.shape))
        scores.append([min(psnr(leak, x), 99.0), psnr(image, x), float(label(gradients[-1]) == int(y))])
    members = []
    for shard, update in zip(many.shards.values(), eavesdrop(many), strict=True):
        members.append(auc(by_loss(model, update, shard), by_loss(model, update, many.dataset.test)))
    leaked, inverted, labels = np.mean(scores, 0)
    return f"{mode:8}{leaked:9.1f} dB{inverted:12.1f} dB{labels:9.0%}{np.mean(members):13.2f}"


def cheating(server: type[InconsistentServer | DoubleRevealServer]) -> str:
    setup = fedavg("secagg", examples=20, epochs=1)
    told: list[Event] = []
    try:
        simulate(
            replace(setup, course=usurped(setup.course, server)), told=lambda seconds, seat, event: told.append(event)
        )
    except CourseError:
        refusals = sum(isinstance(event, AggregationLeft) for event in told)
        unmasked = any(event.unmasked for event in told if isinstance(event, SeedsTaken))
        return f"{server.__name__}: {refusals} of {CLIENTS} clients refuse, unmasked: {unmasked}"
    return f"{server.__name__}: nobody noticed"


def main() -> None:
    torch.set_num_threads(1)
    logging.disable()  # clients that refuse say so at length
    print(f"{'':8}{'linear leak':>12}{'inversion':>15}{'labels':>9}{'membership':>13}")
    for mode in MODES:
        print(curious(mode))
    print(cheating(InconsistentServer))
    print(cheating(DoubleRevealServer))


if __name__ == "__main__":
    main()
