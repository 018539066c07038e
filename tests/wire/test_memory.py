"""Large pieces of memory: who looks into one keeps it, and who comes later gets what nobody looks into."""

from __future__ import annotations

import threading

import pytest

from p2pfl.wire import memory
from p2pfl.wire.memory import allocate


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE_BYTES", 0)
    monkeypatch.setattr(memory, "_used", [])


def test_memory_is_used_again_once_nobody_looks_into_it() -> None:
    first = allocate(8192)
    first[:3] = b"abc"
    part = first[:3].toreadonly()
    second = allocate(8192)
    second[:3] = b"xyz"
    assert bytes(part) == b"abc"
    del first
    assert bytes(allocate(8192)[:3]) != b"abc", "somebody still looks into it"
    del part
    assert bytes(allocate(8192)[:3]) == b"abc", "it is the first one again"


def test_another_size_is_another_piece() -> None:
    assert [allocate(size).nbytes for size in (4096, 8192, 4096, 5000)] == [4096, 8192, 4096, 5000]


def test_only_a_few_pieces_are_kept() -> None:
    views = [allocate(4096) for _ in range(8)]
    for number, view in enumerate(views):
        view[0] = number
    assert [view[0] for view in views] == list(range(8))
    assert len(memory._used) == memory._KEPT


def test_two_threads_never_get_one_piece() -> None:
    found: list[memoryview] = []

    def take() -> None:
        for _ in range(200):
            found.append(allocate(4096))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, view in enumerate(found):
        view[:4] = number.to_bytes(4)
    assert [int.from_bytes(view[:4]) for view in found] == list(range(800))


def test_what_is_small_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE_BYTES", 1 << 40)
    assert bytes(allocate(5)) == bytes(5)
    assert not memory._used
