"""The rounds of a run as tables to ask questions of: one SQLite database, in write-ahead mode, each round synced.

rounds(round, term, aggregate_hash, certificate, committed_at)
contributions(round, seat, peer, update_hash, weight)
metrics(round, name, value)
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate

__all__ = ["LEDGER", "Ledger"]

LEDGER = "journal.sqlite"
_TABLES = """
create table if not exists rounds (
    round integer primary key, term integer, aggregate_hash text, certificate text, committed_at real not null
) strict;
create table if not exists contributions (
    round integer not null references rounds (round) on delete cascade,
    seat integer not null, peer text not null, update_hash text not null, weight real not null,
    primary key (round, seat)
) strict, without rowid;
create table if not exists metrics (
    round integer not null references rounds (round) on delete cascade,
    name text not null, value real not null,
    primary key (round, name)
) strict, without rowid;
"""


class Ledger:
    """Opens the database in a folder. One that is damaged is put aside, and `damage` says so: a new one is begun."""

    def __init__(self, folder: Path) -> None:
        """Raises JournalError if there can be none."""
        self.path = folder / LEDGER
        self.damage = ""
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            aside = self.path.with_suffix(".damaged")
            self.damage = (
                f"{self.path} was damaged ({error}) and lies in {aside.name} now; its rounds are not in the new one"
            )
            self._put_aside(aside)
            try:
                self._prepare()
            except sqlite3.Error as still:
                raise JournalError(f"{self.path} cannot be written: {still}") from still

    def record(self, round: int, certificate: Certificate | None, metrics: Mapping[str, float]) -> None:
        """Add a round, in place of one that was not announced. Raises JournalError."""
        term, aggregate, text = None, None, None
        if certificate is not None:
            term, aggregate = certificate.term, certificate.aggregate_hash
            text = msgspec.json.encode(certificate).decode()
        try:
            with closing(self._connect()) as database, database:
                database.execute("delete from rounds where round >= ?", (round,))
                database.execute(
                    "insert into rounds values (?, ?, ?, ?, ?)", (round, term, aggregate, text, time.time())
                )
                database.executemany(
                    "insert into contributions values (?, ?, ?, ?, ?)",
                    [
                        (round, each.seat, each.peer, each.update_hash, each.weight)
                        for each in (certificate.contributions if certificate else ())
                    ],
                )
                database.executemany(
                    "insert into metrics values (?, ?, ?)", [(round, name, value) for name, value in metrics.items()]
                )
        except sqlite3.Error as error:
            raise JournalError(f"{self.path} cannot be written: {error}") from error

    def has(self, round: int) -> bool:
        """Whether that round was recorded."""
        try:
            with closing(self._connect()) as database:
                return database.execute("select 1 from rounds where round = ?", (round,)).fetchone() is not None
        except sqlite3.Error as error:
            raise JournalError(f"{self.path} cannot be read: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        """A connection of its own for each use: they come from several threads, a round apart."""
        database = sqlite3.connect(self.path, timeout=10.0)
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = full")
        database.execute("pragma foreign_keys = on")
        return database

    def _prepare(self) -> None:
        with closing(self._connect()) as database:
            (verdict,) = database.execute("pragma quick_check").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            with database:
                database.executescript(_TABLES)

    def _put_aside(self, aside: Path) -> None:
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        if self.path.exists():
            self.path.replace(aside)

    def __repr__(self) -> str:
        return f"<Ledger {self.path}>"
