from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate, Contribution
from p2pfl.journal.ledger import LEDGER, Ledger


def certificate(round: int) -> Certificate:
    return Certificate(
        "run", round, 1, f"hash {round}", (Contribution(1, "a", "x", 2.0), Contribution(2, "b", "y", 1.0))
    )


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / LEDGER)) as database:
        return database.execute(query).fetchall()


def test_rounds_contributions_and_metrics_are_tables(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(1, certificate(1), {"accuracy": 0.5})
    ledger.record(2, None, {})
    assert rows(tmp_path, "select round, term, aggregate_hash from rounds") == [(1, 1, "hash 1"), (2, None, None)]
    assert rows(tmp_path, "select * from contributions") == [(1, 1, "a", "x", 2.0), (1, 2, "b", "y", 1.0)]
    assert rows(tmp_path, "select * from metrics") == [(1, "accuracy", 0.5)]
    assert ledger.has(1)
    assert not ledger.has(3)
    assert rows(tmp_path, "pragma journal_mode") == [("wal",)]


def test_a_round_that_is_played_again_takes_the_place_of_it_and_of_later_ones(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for round in (1, 2, 3):
        ledger.record(round, certificate(round), {"loss": float(round)})
    Ledger(tmp_path).record(2, None, {})
    assert rows(tmp_path, "select round, aggregate_hash from rounds") == [(1, "hash 1"), (2, None)]
    assert rows(tmp_path, "select distinct round from contributions") == [(1,)]
    assert rows(tmp_path, "select * from metrics") == [(1, "loss", 1.0)]


def test_a_damaged_database_is_put_aside_and_told(tmp_path: Path) -> None:
    Ledger(tmp_path).record(1, certificate(1), {})
    path = tmp_path / LEDGER
    content = bytearray(path.read_bytes())
    content[:100] = bytes(100)
    path.write_bytes(content)
    ledger = Ledger(tmp_path)
    assert "was damaged" in ledger.damage
    assert path.with_suffix(".damaged").read_bytes() == content
    ledger.record(5, None, {})
    assert Ledger(tmp_path).damage == ""
    assert rows(tmp_path, "select round from rounds") == [(5,)]


def test_one_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written"):
        Ledger(tmp_path / "nowhere")
