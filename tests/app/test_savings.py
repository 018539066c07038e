import pytest

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.savings import savings

TABLES = {"course": {"name": "fedavg"}, "model": {"name": "logistic"}, "topology": {"n": 3}}
NUMEL = 64 * 10 + 10


def test_nothing_is_told_where_nothing_is_compressed():
    assert savings(prepare(from_mapping(TABLES)), 10) == {}


def test_ratios_and_bytes_by_hand():
    compress = {"up": {"select": "top-k", "fraction": 0.1}, "down": {"values": "float16"}}
    found = savings(prepare(from_mapping({**TABLES, "compress": compress})), 10)
    up = (3 + 1 + 10 / 8) / 8 * NUMEL / 10 + 4 * NUMEL / 10
    assert found["down_ratio"] == 2.0
    assert found["up_ratio"] == pytest.approx(4 * NUMEL / up, rel=0.01)
    assert found["bytes_saved"] == pytest.approx(10 * (6 * NUMEL - up), rel=0.01)


def test_what_entropy_coding_has_saved_is_what_was_counted():
    setup = prepare(from_mapping({**TABLES, "compress": {"up": {"values": "uniform", "entropy": "zlib"}}}))
    setup.tally.add(100, 250)
    found = savings(setup, 1)
    assert (found["entropy_ratio"], found["entropy_bytes_saved"]) == (2.5, 150)


def test_without_a_coordinator_there_is_one_ratio():
    tables = {**TABLES, "course": {"name": "choco"}, "compress": {"up": {"values": "float16"}}}
    assert savings(prepare(from_mapping(tables)), 10) == {"ratio": 2.0}
