from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import JournalError
from p2pfl.journal.state import State, dump, parse

names = st.text(min_size=1, max_size=20)
tensors = st.lists(st.floats(width=32), max_size=20).map(torch.tensor)
plain = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
states = st.dictionaries(names, tensors | plain, max_size=6)


def same(a: State, b: State) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return x.dtype == y.dtype and x.shape == y.shape and x.numpy().tobytes() == y.numpy().tobytes()
        return type(x) is type(y) and x == y

    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


@given(states, st.integers() | st.lists(st.text()))
def test_what_was_dumped_comes_back(state: State, about: object) -> None:
    found, told = parse(dump(state, about))
    assert same(found, state)
    assert told == about


@given(states.filter(bool), st.data())
def test_one_turned_bit_is_noticed(state: State, data: st.DataObject) -> None:
    content = bytearray(dump(state))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    try:
        found, _ = parse(bytes(content))
    except JournalError:
        return
    assert same(found, state)  # white space in a header, or the order of what is in it


@given(states, st.data())
def test_a_torn_file_is_noticed(state: State, data: st.DataObject) -> None:
    content = dump(state)
    with pytest.raises(JournalError):
        parse(content[: data.draw(st.integers(0, len(content) - 1))])


def test_tensors_in_one_memory_are_told_apart() -> None:
    shared = torch.arange(6.0)
    found, _ = parse(dump({"a": shared, "b": shared[2:], "c": shared.view(2, 3)}))
    assert same(found, {"a": shared, "b": shared[2:].clone(), "c": shared.view(2, 3).clone()})


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_every_kind_of_number(kind: torch.dtype) -> None:
    tensor = torch.tensor([1, 0, 1], dtype=kind)
    found, _ = parse(dump({"a": tensor}))
    assert isinstance(found["a"], torch.Tensor)
    assert found["a"].dtype == kind
    assert torch.equal(found["a"], tensor)
