"""Fairness against numpy, and against the statements of the paper."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.learn import spread
from p2pfl.learn.specs import MetricsSpec
from p2pfl.learn.spread import FAIRNESS, fairness, summaries

accuracies = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=50)


def test_examples() -> None:
    assert doctest.testmod(spread).failed == 0


@given(accuracies)
def test_each_figure_is_that_of_numpy(values: list[float]) -> None:
    found, a = fairness(values), np.sort(np.array(values))
    n, ones = len(a), np.ones(len(a))
    assert tuple(found) == FAIRNESS
    assert found["std"] == pytest.approx(a.std(), abs=1e-12)
    assert (found["min"], found["max"]) == (a.min(), a.max())
    assert (found["bottom_decile"], found["top_decile"]) == (a[n // 10], a[9 * n // 10])
    assert found["bottom10"] == pytest.approx(a[: max(1, n // 10)].mean())
    assert found["top10"] == pytest.approx(a[-max(1, n // 10) :].mean())
    shares = a / a.sum()
    assert found["entropy"] == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)
    assert found["cosine"] == pytest.approx(a @ ones / np.linalg.norm(a) / np.linalg.norm(ones))


@given(accuracies)
def test_no_figures_are_more_uniform_than_equal_ones(values: list[float]) -> None:
    found, even = fairness(values), fairness([0.5] * len(values))
    assert even["cosine"] == pytest.approx(1) and even["entropy"] == pytest.approx(math.log(len(values)), abs=1e-9)
    assert even["std"] == 0
    assert found["cosine"] <= even["cosine"] + 1e-9 and found["entropy"] <= even["entropy"] + 1e-9


def test_a_client_without_any_accuracy_counts_and_what_is_not_defined_is_left_out() -> None:
    assert fairness([0.0, 0.5, 0.5])["entropy"] == pytest.approx(math.log(2))
    assert "entropy" not in fairness([0.0, 0.0]) and "cosine" not in fairness([-1.0, 2.0])
    assert fairness([]) == {}


SCORES = {3: {"loss": 1.0, "f1": 0.5}, 1: {"loss": 2.0}, 2: {"loss": 6.0, "f1": 1.0}}


def test_only_what_is_asked_for_is_told() -> None:
    assert summaries(SCORES, MetricsSpec()) == {}
    assert summaries(SCORES, MetricsSpec(clients=("each",))) == {}
    assert summaries(SCORES, MetricsSpec(clients=("mean",))) == {"loss_mean": 3.0, "f1_mean": 0.75}
    groups = MetricsSpec(clients=("groups",), groups={"north": (1, 2), "south": (1,), "away": (9,)})
    assert summaries(SCORES, groups) == {"loss@north": 4.0, "loss@south": 2.0, "f1@north": 1.0}
    names = {f"{name}_{figure}" for name in ("loss", "f1") for figure in FAIRNESS}
    assert set(summaries(SCORES, MetricsSpec(clients=("fairness",)))) == names
