"""Pipelines: chains of stages, what is remembered, and bits packed into bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.learn.quantize import float16, qsgd, sign, uniform
from p2pfl.learn.sparsify import random_k, top_k
from p2pfl.learn.transform import Ef21, ErrorFeedback, chain, finite, pack, packed_bytes, unpack
from p2pfl.wire.tensor import ITEM_BYTES, schema_bytes

TYPES = {"u8": torch.uint8, "u16": torch.uint16, "i32": torch.int32, "i64": torch.int64, "f16": torch.float16,
         "bf16": torch.bfloat16, "f32": torch.float32}  # fmt: skip


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def there_and_back(transform, vector, seed=0):
    return transform.decode(transform.encode(vector, {}, rng(seed)).payload)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(data=st.data())
def test_codes_come_back_from_their_bytes(bits, data):
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40)), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(len(codes), bits)
    assert torch.equal(unpack(packed, bits, len(codes)), codes)


PIPELINES = {
    "nothing": (),
    "top-k": (top_k(0.1),),
    "top-k, many": (top_k(0.5),),
    "random-k": (random_k(0.1),),
    "uniform": (uniform(8),),
    "top-k, qsgd": (top_k(0.1), qsgd(4, 8)),
    "top-k, sign": (top_k(0.2), sign(16)),
    "random-k, halves": (random_k(0.3), float16),
    "twice": (top_k(0.5), random_k(0.5), uniform(4, 32)),
}


@pytest.mark.parametrize("stages", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("numel", [1, 7, 1000])
@pytest.mark.parametrize("feedback", [False, True])
def test_what_is_sent_is_as_the_schema_says_whatever_the_numbers(stages, numel, feedback):
    transform = chain(numel, *stages)
    transform = ErrorFeedback(transform) if feedback else transform
    for vector in (torch.randn(numel), torch.zeros(numel), torch.full((numel,), -3.0)):
        payload = transform.encode(vector, {}, rng()).payload
        assert [each.dtype for each in payload] == [TYPES[spec.dtype] for spec in transform.schema]
        assert [tuple(each.shape) for each in payload] == [spec.shape for spec in transform.schema]
        assert sum(each.nbytes for each in payload) == schema_bytes(transform.schema)
        assert all(
            each.element_size() == ITEM_BYTES[s.dtype] for each, s in zip(payload, transform.schema, strict=True)
        )
        back = transform.decode(payload)
        assert back.dtype == torch.float32 and back.shape == (numel,) and bool(back.isfinite().all())
        if not vector.any():
            assert not back.any()


def test_a_chain_of_nothing_gives_the_vector_itself():
    vector = torch.randn(5)
    (sent,) = chain(5).encode(vector, {}, rng()).payload
    assert sent is vector
    assert chain(5).decode((sent,)) is vector


def test_sparse_ternary_compression_by_hand():
    vector = torch.tensor([0.1, -4.0, 0.2, 2.0, 0.0, -0.3])
    found = there_and_back(chain(6, top_k(0.5), sign()), vector)
    mean = (4.0 + 2.0 + 0.3) / 3
    assert torch.allclose(found, torch.tensor([0.0, -mean, 0.0, mean, 0.0, -mean]))


@given(seed=st.integers(0, 1000), rounds=st.integers(1, 8))
def test_with_error_feedback_what_was_sent_and_what_is_withheld_is_all_there_was(seed, rounds):
    """The telescoping sum: sum of what was decoded + the last error = sum of what was given."""
    feedback = ErrorFeedback(chain(40, top_k(0.1), sign(4)))
    given, sent, state, chance = torch.zeros(40), torch.zeros(40), {}, rng(seed)
    for _ in range(rounds):
        vector = torch.randn(40, generator=chance)
        payload, state = feedback.encode(vector, state, chance)
        given, sent = given + vector, sent + feedback.decode(payload)
    assert torch.allclose(sent + state["error"], given, atol=1e-5)


def test_error_feedback_sends_each_number_in_the_end():
    """Top-1 of a vector that stays the same never sends any other number; with feedback it sends all, in proportion."""
    vector = torch.tensor([1.0, 0.5, 0.25])
    plain, feedback = chain(3, top_k(0.3)), ErrorFeedback(chain(3, top_k(0.3)))
    sent, state = torch.zeros(3), {}
    for _ in range(70):
        payload, state = feedback.encode(vector, state, rng())
        sent += feedback.decode(payload)
    assert torch.allclose(sent / 70, vector, atol=0.03)
    assert torch.equal(there_and_back(plain, vector), torch.tensor([1.0, 0.0, 0.0]))


def test_ef21_is_the_recursion_of_the_paper():
    ef21 = Ef21(chain(20, top_k(0.2)))
    chance, known, state = rng(), np.zeros(20), {}
    for _ in range(6):
        vector = torch.randn(20, generator=chance)
        payload, state = ef21.encode(vector, state, chance)
        new = vector.numpy() - known
        new[np.argsort(-np.abs(new))[4:]] = 0
        known = known + new
        np.testing.assert_allclose(ef21.decode(payload), new, atol=1e-6)
        np.testing.assert_allclose(state["known"], known, atol=1e-6)


def test_ef21_knows_a_vector_that_stays_the_same_and_then_sends_nothing():
    ef21, vector, state = Ef21(chain(20, top_k(0.2))), torch.randn(20), {}
    for _ in range(6):
        payload, state = ef21.encode(vector, state, rng())
    assert torch.allclose(state["known"], vector) and not ef21.decode(payload).any()


def test_nothing_that_was_given_is_written_to():
    vector = torch.randn(100)
    kept = vector.clone()
    feedback = ErrorFeedback(chain(100, top_k(0.3), qsgd(4, unbiased=False)))
    _, state = feedback.encode(vector, {}, rng())
    before = state["error"].clone()
    feedback.encode(vector, state, rng())
    assert torch.equal(vector, kept) and torch.equal(state["error"], before)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_found(number):
    finite([torch.zeros(3)])
    with pytest.raises(ValueError, match="NaN or infinite"):
        finite([torch.zeros(3), torch.tensor([number])])
