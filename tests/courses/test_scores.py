"""What clients have found, as one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses.messages import Rating, Score
from p2pfl.courses.scores import CLIENT, ClientsEvaluated, Scores, weighted_mean
from p2pfl.learn.specs import MetricsSpec


def score(examples, **metrics):
    return Score(Rating(metrics, examples), {})


def scores(*clients, own=(), wanted=("mean",)):
    found = Scores(MetricsSpec(own=own, clients=wanted))
    for seat, one in enumerate(clients, 1):
        found.take(seat, one)
    return found


def test_the_mean_is_weighted_by_examples_and_others_are_told_beside_it():
    found = scores(score(1, loss=1.0), score(3, loss=5.0))
    assert found.figures(CLIENT) == {"client_loss": 4.0, "client_loss_mean": 3.0}
    assert scores(score(1, loss=1.0), score(3, loss=5.0), wanted=()).figures(CLIENT) == {"client_loss": 4.0}


def test_what_is_no_known_metric_or_no_number_does_not_count():
    odd = score(1, loss=float("inf"), f1=0.5, made_up=7.0)
    assert scores(odd, score(2, loss=2.0), own=("m:f1",)).figures(CLIENT) == {
        "client_loss": 2.0, "client_f1": 0.5, "client_loss_mean": 2.0, "client_f1_mean": 0.5,
    }  # fmt: skip
    assert scores(odd).figures(CLIENT) == {}


def test_who_speaks_for_several_gives_each():
    below = scores(score(1, loss=1.0), score(3, loss=5.0))
    assert below.merged(each=False).clients == {}
    above = Scores(MetricsSpec(clients=("mean",)))
    above.take(9, below.merged(each=True))
    above.take(3, score(4, loss=0.0))
    assert above.figures(CLIENT) == {"client_loss": 2.0, "client_loss_mean": 2.0}
    assert above.by_client == {1: {"loss": 1.0}, 2: {"loss": 5.0}, 3: {"loss": 0.0}}
    assert str(ClientsEvaluated(4, above.by_client)) == "3 clients have evaluated the model of round 4"


def test_nobody_is_remembered_where_only_the_mean_is_wanted():
    assert scores(score(1, loss=1.0), wanted=()).by_client == {}


def test_weighted_mean():
    assert weighted_mean([(1.0, 1), (None, 5), (4.0, 2)]) == pytest.approx(3.0)
    assert weighted_mean([(1.0, 0)]) is None is weighted_mean([])


@given(st.lists(st.tuples(st.none() | st.floats(-1e9, 1e9), st.integers(0, 1000))), st.randoms(use_true_random=False))
def test_the_mean_of_what_is_there_is_the_same_in_any_order(weighted, random):
    mean = weighted_mean(weighted)
    shuffled = random.sample(weighted, len(weighted))
    assert weighted_mean(shuffled) == mean
    there = [(value, weight) for value, weight in weighted if value is not None and weight]
    assert (mean is None) == (not there)
    if there:
        total = sum(weight for _, weight in there)
        assert math.isclose(mean, sum(v * w for v, w in there) / total, rel_tol=1e-9, abs_tol=1e-3)
