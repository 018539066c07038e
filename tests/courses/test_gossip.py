import pytest

from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.learn.evaluate import evaluate
from p2pfl.node.events import RoundEnded
from p2pfl.topology.families import build
from tests.courses.kit import Played


@pytest.mark.parametrize(
    ("every", "evaluators", "rounds_of"),
    [(1, -1, [[1, 2, 3]] * 4), (2, -1, [[2, 3]] * 4), (1, 2, [[1, 2, 3], [1, 2, 3], [], []]), (5, 0, [[]] * 4)],
)
def test_who_evaluates_and_when(every, evaluators, rounds_of):
    settings = DpsgdSettings(rounds=3, evaluate_every=every, evaluators=evaluators)
    played = Played(DPSGD, settings, build("ring", 4)).play()
    for seat, rounds in enumerate(rounds_of):
        ended = played.told(RoundEnded, seat)
        assert [event.round for event in ended if "accuracy" in event.metrics] == rounds
        assert all("train_loss" in event.metrics for event in ended)


def test_the_last_round_tells_how_good_the_model_is_that_is_kept():
    played = Played(DPSGD, DpsgdSettings(rounds=2), build("ring", 4)).play()
    found = evaluate(played.params[3], played.model, played.data.test)
    assert played.metric("accuracy", 3)[-1] == found.accuracy
