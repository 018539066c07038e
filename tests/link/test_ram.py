from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pfl.link import ram
from p2pfl.link.base import LinkLimits


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    ram.ram_bytes.cache_clear()
    yield
    ram.ram_bytes.cache_clear()


def host(monkeypatch: pytest.MonkeyPatch, container: Path) -> None:
    """A machine with 16 GiB."""
    monkeypatch.setattr(ram.os, "sysconf", {"SC_PHYS_PAGES": 1 << 22, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)
    monkeypatch.setattr(ram, "_CONTAINER", container)


@pytest.mark.parametrize(("bound", "size"), [("max\n", 16 << 30), ("2147483648\n", 2 << 30), ("99999999999", 16 << 30)])
def test_a_container_may_have_less_than_its_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bound: str, size: int
) -> None:
    (tmp_path / "memory.max").write_text(bound)
    host(monkeypatch, tmp_path / "memory.max")
    assert ram.ram_bytes() == size


def test_a_quarter_of_it_is_for_packets_under_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host(monkeypatch, tmp_path / "nothing here")
    assert LinkLimits().max_under_way_in_all == 4 << 30


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host(monkeypatch, tmp_path / "nothing here")
    monkeypatch.delattr(ram.os, "sysconf")
    assert ram.ram_bytes() == 8 << 30
