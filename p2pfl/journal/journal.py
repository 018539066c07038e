"""Committed rounds, and what else a node must not forget. What was committed is there after any crash.

The files of a journal, which are told apart by their names:

    round-000012.safetensors     the state after 12 rounds; the last two are there, in case one is damaged
    kept-NAME.safetensors        what `keep` was given last under that name
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate
from p2pfl.journal.disk import Disk
from p2pfl.journal.ledger import Ledger
from p2pfl.journal.state import State, dump, parse

__all__ = ["Commit", "Journal"]

_ROUND = re.compile(r"round-(\d{6,})\.safetensors")
_KEPT = re.compile(r"kept-(.+)\.safetensors")
_GENERATIONS = 2  # states that are there, in case the last one is damaged


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a node stands after so many rounds: what `Resumes.resume` takes, and how the last round came about."""

    rounds: int
    state: State
    certificate: Certificate | None = None  # where there is a coordinator
    metrics: Mapping[str, float] = field(default_factory=dict)


class Journal:
    """One node's memory of one run. `damage` has a sentence for each thing that was found damaged."""

    def __init__(self, disk: Disk, run: str, ledger: Ledger | None = None) -> None:
        """`run`: the name of the run, the same at all its nodes."""
        self.run = run
        self.damage: list[str] = [ledger.damage] if ledger is not None and ledger.damage else []
        self._disk = disk
        self._ledger = ledger
        self._turn = asyncio.Lock()  # what is written later stays

    def last(self) -> Commit | None:
        """The last commit that can be read whole; None: there is none."""
        for rounds in sorted(self._generations(), reverse=True):
            name = _round_name(rounds)
            try:
                content = self._disk.read(name)
                if content is None:
                    continue
                state, about = parse(content)
                certificate = None if about["certificate"] is None else Certificate.of(about["certificate"])
                return Commit(rounds, state, certificate, about["metrics"])
            except JournalError as error:
                self._damaged(f"{name} is passed over: {error}")
        return None

    async def commit(self, commit: Commit) -> None:
        """Once it returns, the rounds so far cannot be lost. Raises JournalError, and then the last one stands."""
        certificate = None if commit.certificate is None else commit.certificate.plain()
        about = {"certificate": certificate, "metrics": dict(commit.metrics)}
        async with self._turn:
            await self._disk.write(_round_name(commit.rounds), dump(commit.state, about))
            if self._ledger is not None:
                await asyncio.to_thread(self._ledger.record, commit.rounds, commit.certificate, commit.metrics)
            for rounds in sorted(self._generations(), reverse=True)[_GENERATIONS:]:
                await self._disk.delete(_round_name(rounds))

    async def keep(self, name: str, state: State) -> None:
        """Remember this in place of what was kept under that name. Raises JournalError, and then that stands."""
        async with self._turn:
            await self._disk.write(_kept_name(name), dump(state))

    def kept(self, name: str) -> State | None:
        """What was kept last; None if there is nothing, or if it is damaged."""
        try:
            return self.intact(name)
        except JournalError as error:
            self._damaged(f"{_kept_name(name)} is passed over: {error}")
            return None

    def intact(self, name: str) -> State | None:
        """What was kept last; None if there is nothing. Raises JournalError if it is damaged."""
        content = self._disk.read(_kept_name(name))
        return None if content is None else parse(content)[0]

    def names(self) -> list[str]:
        """Under which names something is kept."""
        return sorted(found[1] for name in self._disk.names() if (found := _KEPT.fullmatch(name)))

    async def drop(self, name: str) -> None:
        """Remember no longer what was kept under that name."""
        async with self._turn:
            await self._disk.delete(_kept_name(name))

    def _generations(self) -> list[int]:
        return [int(found[1]) for name in self._disk.names() if (found := _ROUND.fullmatch(name))]

    def _damaged(self, sentence: str) -> None:
        if sentence not in self.damage:
            self.damage.append(sentence)

    def __repr__(self) -> str:
        return f"<Journal of run {self.run[:8]} on {self._disk!r}>"


def _round_name(rounds: int) -> str:
    return f"round-{rounds:06d}.safetensors"


def _kept_name(name: str) -> str:
    return f"kept-{name}.safetensors"
