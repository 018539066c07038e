"""A node that keeps what it hears, in a course as it runs."""

from __future__ import annotations

import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.attacks.wiretap import Wiretap
from p2pfl.compute.inline import Inline
from p2pfl.courses.messages import Train, Update
from p2pfl.courses.secagg import Masked
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World


@pytest.mark.parametrize("privacy", ["plain", "secagg"])
def test_a_coordinator_hears_each_update_or_only_masked_ones(privacy: str) -> None:
    course = {"name": "fedavg", "rounds": 1, "weights": "equal", "evaluate": "none", "privacy": privacy}
    setup = prepare(from_mapping({"course": course, "topology": {"n": 5}, "train": {"steps": 1}}))
    world = World(5, setup.roles, Inline())
    world.memory.watch = tap = Wiretap(world.peer_id(0), Train, Update, Masked)
    run_virtual(world.run(lambda seconds, seat, event: None))
    assert sorted(each.sender for each in tap.heard) == sorted(world.peer_id(seat) for seat in range(1, 5))
    [kind] = {type(each.message) for each in tap.heard}
    assert kind is (Masked if privacy == "secagg" else Update)
    if privacy == "plain":
        vectors = [setup.learner(0, Inline()).vector(each.message.params) for each in tap.heard]
        torch.testing.assert_close(torch.stack(vectors).mean(0), world.seats[0].roles[0].params)
    assert repr(tap) == f"<Wiretap of {world.peer_id(0)[:10]}: 4 messages>"
