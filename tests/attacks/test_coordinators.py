"""Coordinators that cheat: what they would gain, and that clients refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.attacks.coordinators import DoubleRevealServer, InconsistentServer, SeedsTaken, suppressed, usurped
from p2pfl.attacks.gradients import gradient_of
from p2pfl.attacks.leaks import layer_input
from p2pfl.courses.fedavg import FEDAVG, SecretServer
from p2pfl.courses.secagg import AggregationFailed, AggregationLeft
from p2pfl.errors import CourseError
from p2pfl.node.events import Event
from p2pfl.privacy.secagg import Advert
from tests.attacks.victims import example, relu

CLIENTS = 5
MODES = ["secagg", "secagg+consistency"]


@cache
def setup(privacy: str) -> Setup:
    course = {"name": "fedavg", "rounds": 1, "evaluate": "none", "privacy": privacy}
    return prepare(from_mapping({"course": course, "topology": {"n": 1 + CLIENTS}, "train": {"steps": 1}}))


def played(privacy: str, server: type[SecretServer]) -> list[Event]:
    """What the nodes tell of a course in which this server comes to nothing."""
    told: list[Event] = []
    with pytest.raises(CourseError, match="brought an update"):
        simulate(
            replace(setup(privacy), course=usurped(FEDAVG, server)),
            told=lambda seconds, seat, event: told.append(event),
        )
    return told


def test_a_sum_of_suppressed_updates_and_one_other_is_the_other() -> None:
    model, (x, y) = relu(), example()
    dead = suppressed(model, model.initial)
    total = [part.clone() for part in gradient_of(model, model.initial, x, y)]
    for seed in range(2, 6):
        for part, more in zip(total, gradient_of(model, dead, *example(seed)), strict=True):
            part += more
    torch.testing.assert_close(layer_input(total[0], total[1]), x[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("privacy", MODES)
def test_two_models_in_one_session_are_refused_by_all_clients(privacy: str) -> None:
    told = played(privacy, InconsistentServer)
    refused = [str(event) for event in told if isinstance(event, AggregationLeft)]
    assert len(refused) == CLIENTS
    assert all("has not signed these keys for this session, model and terms" in reason for reason in refused)
    assert sum(isinstance(event, AggregationFailed) for event in told) == 1


def test_without_that_check_nothing_that_is_sealed_for_another_model_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Advert, "check", lambda self, session, verifies: None)
    told = played("secagg", InconsistentServer)
    refused = [str(event) for event in told if isinstance(event, AggregationLeft)]
    assert len(refused) == CLIENTS
    assert all("has sealed shares for us that do not open" in reason for reason in refused)


@pytest.mark.parametrize("privacy", MODES)
def test_who_asks_for_both_seeds_of_a_client_gets_enough_of_neither_or_of_one(privacy: str) -> None:
    told = played(privacy, DoubleRevealServer)
    [taken] = [event for event in told if isinstance(event, SeedsTaken)]
    assert taken.own + taken.mask <= CLIENTS  # nobody answers both
    assert not taken.unmasked
    assert sum(isinstance(event, AggregationLeft) for event in told) == CLIENTS


def test_it_takes_both_seeds_to_unmask() -> None:
    assert SeedsTaken(3, 3, 3).unmasked
    assert not SeedsTaken(5, 2, 3).unmasked
    assert str(SeedsTaken(5, 2, 3)) == "5 shares of a client's own seed and 2 of its mask key; it takes 3 each"
