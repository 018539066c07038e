from types import SimpleNamespace

import pytest

from p2pfl.courses.scores import ClientsEvaluated
from p2pfl.learn.specs import MetricsSpec
from p2pfl.node.events import CourseEnded, PeerLost, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.sim.report import Recorder, Round, seconds_to_accuracy


@pytest.fixture
def wire():
    """A network, as far as it is looked at."""
    return SimpleNamespace(bytes=100)


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


def test_a_round_that_a_second_one_has_led_counts_once(wire):
    record, ended, _ = recorder(wire, 1)
    for seat, number in ((3, 1), (4, 1), (3, 2), (4, 1), (5, 3)):
        record(1.0, seat, RoundEnded(number, 2))
    assert [done.round for done in ended] == [1, 2, 3]


def test_without_one_a_round_is_over_with_the_last_of_the_nodes(wire):
    record, ended, _ = recorder(wire, 3)
    record(1.0, 0, RoundEnded(1, 2, {"accuracy": 0.5}))
    record(1.1, 1, RoundEnded(1, 2, {"accuracy": 0.75, "loss": 3.0}))
    record(1.2, 0, RoundEnded(2, 2, {"accuracy": 0.9}))  # nodes may be ahead
    assert not ended
    record(1.3, 2, RoundEnded(1, 3))
    (done,) = ended
    assert done == Round(1, 1.3, 100, 7, {"accuracy": 0.625, "accuracy_min": 0.5, "loss": 3.0})


def test_of_nodes_is_told_what_is_wanted_beside_their_mean(wire):
    record, ended, told = recorder(wire, 3)
    record.measured = MetricsSpec(clients=("each", "fairness", "groups"), groups={"south": (0, 2)})
    for seat, accuracy in ((2, 0.5), (0, 0.75), (1, 1.0)):
        record(1.0, seat, RoundEnded(1, 1, {"accuracy": accuracy, "train_loss": 0.1}))
    (done,), ((_, _, event),) = ended, told
    assert event == ClientsEvaluated(1, {0: {"accuracy": 0.75}, 1: {"accuracy": 1.0}, 2: {"accuracy": 0.5}})
    assert (done.metrics["accuracy_min"], done.metrics["accuracy_max"]) == (0.5, 1.0)
    assert done.metrics["accuracy@south"] == 0.625
    assert "train_loss_std" not in done.metrics


def test_other_events_are_told(wire):
    record, _, told = recorder(wire, 1)
    missing = UpdateMissing(1, "seat 3", "it is late", "late")
    events = [RoundStarted(1, 2), missing, PeerLost("x", "gone"), CourseEnded(4, "enough")]
    for event in events:
        record(1.0, 0, event)
    assert told == [(1.0, 0, event) for event in events]
    assert record.missing == 1
    assert record.reason == "enough"
    assert not record.rounds


def rounds(*accuracies, name="accuracy"):
    return [Round(number, 10.0 * number, 0, 1, {name: value}) for number, value in enumerate(accuracies, 1)]


def test_the_time_to_an_accuracy_is_that_of_the_first_round_that_has_it():
    assert seconds_to_accuracy(rounds(0.1, 0.5, 0.4, 0.85, 0.94, 0.97)) == {
        "0.5": 20.0,
        "0.8": 40.0,
        "0.9": 50.0,
        "0.95": 60.0,
    }
    assert seconds_to_accuracy(rounds(0.1, 0.5, 0.4), target=0.3) == {"0.3": 20.0, "0.5": 20.0}
    assert seconds_to_accuracy(rounds(1.0), target=0.999)["0.999"] == 10.0
    assert seconds_to_accuracy(rounds(0.1, 0.2)) == seconds_to_accuracy([]) == {}


def test_without_another_accuracy_that_of_the_clients_counts():
    assert seconds_to_accuracy(rounds(0.6, name="client_accuracy")) == {"0.5": 10.0}
    assert seconds_to_accuracy(rounds(0.6, name="train_loss")) == {}
