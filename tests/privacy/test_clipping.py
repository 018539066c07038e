import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pfl.privacy.clipping import clipped, is_within, next_bound, update_multiplier

ANY = st.floats(width=32)  # NaN and infinity, too
UPDATES = st.lists(ANY, min_size=3, max_size=3).map(torch.tensor)
BOUNDS = st.floats(1e-3, 1e3)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector.double()))


@given(UPDATES, BOUNDS)
@example(torch.zeros(3), 1.0)
@example(torch.full((3,), 3e38), 1.0)
@example(torch.full((3,), 1e-45), 1.0)
@example(torch.tensor([math.nan, 0.0, 0.0]), 1.0)
def test_no_update_counts_for_more_than_the_bound(update: Tensor, bound: float) -> None:
    found = clipped(update, bound)
    assert found.dtype == torch.float64
    assert _norm(found.float()) <= bound  # rounded to float32, as it is sent
    if update.isfinite().all() and _norm(update) <= bound * (1 - 1e-6):
        assert torch.equal(found, update.double())
        assert is_within(update, bound)
    if not update.isfinite().all():
        assert torch.equal(found, torch.zeros(3, dtype=torch.float64))
        assert not is_within(update, bound)


@given(st.lists(UPDATES, min_size=1, max_size=5), st.data(), BOUNDS)
@settings(max_examples=60)
def test_neighbouring_cohorts_have_near_sums(updates: list[Tensor], data: st.DataObject, bound: float) -> None:
    """T-D3: one zeroed out changes the sum by the bound, one replaced by twice that."""
    at, other = data.draw(st.integers(0, len(updates) - 1)), data.draw(UPDATES)
    whole = sum(clipped(update, bound) for update in updates)
    others = [update for index, update in enumerate(updates) if index != at]
    without = sum((clipped(update, bound) for update in others), torch.zeros(3, dtype=torch.float64))
    assert _norm(whole - without) <= bound * (1 + 1e-9)
    assert _norm(whole - without - clipped(other, bound)) <= 2 * bound * (1 + 1e-9)


def test_the_direction_stays_and_the_argument_too() -> None:
    update = torch.tensor([30.0, -40.0])
    assert torch.allclose(clipped(update, 5.0), torch.tensor([3.0, -4.0]).double(), rtol=1e-6)
    assert torch.equal(update, torch.tensor([30.0, -40.0]))
    assert clipped(torch.ones(2, dtype=torch.float64), 5.0).data_ptr() != update.data_ptr()


def test_the_norm_is_summed_in_float64() -> None:
    many = torch.full((1 << 22,), 1.0 + 2.0**-20)
    assert _norm(clipped(many, 2048.0)) <= 2048.0


def test_adaptive_bound_golden() -> None:
    bound, found = 0.1, []
    for within in (0.9, 0.9, 0.2):
        bound = next_bound(bound, within, 0.5)
        found.append(bound)
    assert found == pytest.approx([0.0923116346, 0.0852143789, 0.0904837418], abs=5e-11)


def test_the_split_of_the_noise_golden() -> None:
    assert update_multiplier(1, 5) == pytest.approx(1.005037815259, abs=5e-13)
    assert update_multiplier(0.5, 5) == pytest.approx(0.500626174322, abs=5e-13)
    with pytest.raises(ValueError, match="costs more"):
        update_multiplier(2.0, 1.0)
