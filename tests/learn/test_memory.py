import gc

import pytest
import torch

from p2pfl.learn import memory
from p2pfl.learn.memory import duplicate, empty
from p2pfl.wire import memory as wire_memory


@pytest.mark.parametrize("large", [0, 2**40])
def test_a_copy_is_a_copy(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE_BYTES", large)
    vector = torch.arange(5000.0)
    copy = duplicate(vector)
    assert torch.equal(copy, vector)
    copy.zero_()
    assert vector[1] == 1
    assert empty(3, 1000).shape == (3, 1000)


def test_the_memory_lives_as_long_as_what_looks_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE_BYTES", 0)
    monkeypatch.setattr(wire_memory, "LARGE_BYTES", 0)
    view = memoryview(duplicate(torch.full((5000,), 7.0)).numpy()[10:])
    row = duplicate(torch.full((5000,), 7.0))[100:200]
    gc.collect()
    for _ in range(20):
        empty(5000).zero_()
    assert set(view) == {7.0}
    assert row.unique().tolist() == [7.0]


def test_the_memory_of_a_large_vector_that_is_gone_is_used_again() -> None:
    length = 9 * 2**20
    first = empty(length)
    second = empty(length)
    assert first.data_ptr() != second.data_ptr()
    where, view = first.data_ptr(), first[5:9]
    del first
    assert empty(length).data_ptr() != where, "somebody still looks into it"
    del view
    assert empty(length).data_ptr() == where
