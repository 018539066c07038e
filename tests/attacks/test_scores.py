"""Scores against their definitions, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.attacks.scores import auc, mse, psnr, tpr_at

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(torch.tensor)


@given(scores, scores)
def test_the_auc_counts_pairs(members: torch.Tensor, others: torch.Tensor) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in members.tolist() for b in others.tolist()]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(others, members) == pytest.approx(1 - auc(members, others))


@given(scores, scores, st.floats(0, 1))
def test_no_more_false_alarms_than_allowed_and_no_better_threshold(
    members: torch.Tensor, others: torch.Tensor, fpr: float
) -> None:
    candidates = [-math.inf, *members.tolist(), *others.tolist()]
    allowed = [t for t in candidates if float((others > t).double().mean()) <= fpr + 1e-9]
    best = max(float((members > t).double().mean()) for t in allowed)
    assert tpr_at(members, others, fpr) == pytest.approx(best)


def test_one_in_a_hundred_may_be_wrong() -> None:
    assert tpr_at(torch.tensor([98.5, 97.5]), torch.arange(100.0)) == 0.5


def test_likeness() -> None:
    assert mse(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == 2.5
    assert psnr(torch.tensor([0.1]), torch.tensor([0.0])) == 20
    assert psnr(torch.tensor([25.5]), torch.tensor([0.0]), peak=255) == 20
    assert psnr(torch.ones(3), torch.ones(3)) == math.inf
