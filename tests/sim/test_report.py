import pytest

from p2pfl.node.events import CourseEnded, PeerLost, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.sim.report import Recorder, Round


@pytest.fixture
def wire():
    network = Network(NetworkSpec(), 0)
    network.bytes = 100
    return network


def recorder(wire, expected):
    ended, told = [], []
    return Recorder(wire, expected, ended.append, lambda *event: told.append(event)), ended, told


def test_with_a_coordinator_its_rounds_are_the_rounds(wire):
    record, ended, _ = recorder(wire, 1)
    record(1.5, 0, RoundEnded(1, 8, {"accuracy": 0.5, "loss": 2.0}))
    wire.bytes = 250
    record(2.5, 0, RoundEnded(2, 7))
    assert ended == record.rounds == [
        Round(1, 1.5, 100, 8, {"accuracy": 0.5, "loss": 2.0}),
        Round(2, 2.5, 250, 7, {}),
    ]  # fmt: skip


def test_without_one_a_round_is_over_with_the_last_of_the_nodes(wire):
    record, ended, _ = recorder(wire, 3)
    record(1.0, 0, RoundEnded(1, 2, {"accuracy": 0.5}))
    record(1.1, 1, RoundEnded(1, 2, {"accuracy": 0.75, "loss": 3.0}))
    record(1.2, 0, RoundEnded(2, 2, {"accuracy": 0.9}))  # nodes may be ahead
    assert not ended
    record(1.3, 2, RoundEnded(1, 3))
    (done,) = ended
    assert done == Round(1, 1.3, 100, 7, {"accuracy": 0.625, "accuracy_min": 0.5, "loss": 3.0})


def test_other_events_are_told(wire):
    record, _, told = recorder(wire, 1)
    events = [RoundStarted(1, 2), UpdateMissing(1, "seat 3", "late"), PeerLost("x", "gone"), CourseEnded(4, "enough")]
    for event in events:
        record(1.0, 0, event)
    assert told == [(1.0, 0, event) for event in events]
    assert record.missing == 1
    assert record.reason == "enough"
    assert not record.rounds
