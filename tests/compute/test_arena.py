"""Memory that processes share: who sees what, and when a place is used again."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.compute.arena import Arena


def place_is_free(arena: Arena, offset: int, numel: int) -> bool:
    return arena.offset(arena.empty(numel)) == offset


@given(st.lists(st.integers(1, 5000), max_size=20), st.randoms())
def test_tensors_that_live_never_overlap(sizes: list[int], rng: random.Random) -> None:
    arena, living = Arena(), []
    for number, size in enumerate(sizes):
        living.append((number, arena.empty(size).fill_(number)))
        if rng.random() < 0.4:
            living.pop(rng.randrange(len(living)))
    assert all(bool((tensor == number).all()) for number, tensor in living)


def test_a_place_is_used_again_when_the_tensor_is_gone() -> None:
    arena = Arena()
    tensor = arena.empty(100)
    offset = arena.offset(tensor)
    assert not place_is_free(arena, offset, 100)
    del tensor
    assert place_is_free(arena, offset, 70)


@pytest.mark.parametrize(
    "look", [lambda t: t[3:5], lambda t: t.numpy(), lambda t: t.view(10, 10)[2], torch.Tensor.detach]
)
def test_what_looks_into_a_tensor_keeps_its_place(look) -> None:
    arena = Arena()
    tensor = arena.empty(100)
    offset, seen = arena.offset(tensor), look(tensor)
    del tensor
    assert not place_is_free(arena, offset, 100)
    del seen
    assert place_is_free(arena, offset, 100)


def test_tensors_outlive_the_arena() -> None:
    tensor = Arena().empty(5).fill_(3.0)
    assert tensor.tolist() == [3.0] * 5


def test_a_forked_process_sees_it_and_is_seen() -> None:
    arena = Arena()
    sent = arena.copy(torch.tensor([1, 2, 3]))
    answer = arena.empty(3)
    pid = os.fork()
    if pid == 0:
        arena.view(arena.offset(answer), 3).copy_(2 * arena.view(arena.offset(sent), 3, torch.int64))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert answer.tolist() == [2.0, 4.0, 6.0]


def test_what_lies_there_is_not_copied() -> None:
    arena = Arena()
    tensor = arena.empty(10).zero_()
    assert arena.copy(tensor) is tensor
    part = arena.copy(tensor[2:5])
    part.fill_(1)
    assert tensor.sum() == 3
    strided = arena.copy(tensor[::2])
    strided.fill_(7)
    assert tensor.max() == 1, "a vector with gaps is copied"
    elsewhere = torch.zeros(3)
    arena.copy(elsewhere).fill_(1)
    assert elsewhere.sum() == 0


def test_empty_vectors() -> None:
    arena = Arena()
    assert arena.copy(torch.empty(0, dtype=torch.int64)).dtype == torch.int64
    assert arena.view(arena.offset(arena.empty(0)), 0).numel() == 0


def test_places_begin_at_cache_lines() -> None:
    arena = Arena()
    kept = [arena.empty(n) for n in (1, 3, 17, 100)]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in kept)


def test_it_has_an_end() -> None:
    with pytest.raises(MemoryError, match="shared with other processes is used up"):
        Arena().empty(2**50)
