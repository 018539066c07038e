"""How a role makes its rounds outlive the process, and what it does where that fails: it goes on, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pfl.courses.course import RoleState
from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate
from p2pfl.journal.journal import Commit, Journal
from p2pfl.node.events import Event
from p2pfl.node.node import Node

__all__ = ["Durable", "NotDurable", "RoundCommitted"]


@dataclass(frozen=True, slots=True)
class RoundCommitted(Event):
    """A round cannot be lost any more. Rounds are counted from 1, for people."""

    round: int
    certificate: Certificate | None

    def __str__(self) -> str:
        made_of = "" if self.certificate is None else f": {len(self.certificate.contributions)} updates"
        return f"round {self.round} is committed{made_of}"


@dataclass(frozen=True, slots=True)
class NotDurable(Event):
    """What should outlive the process was not written. The last good state is intact, and the course goes on."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"WARNING: {self.what} would not survive a crash: {self.reason}"


class Durable:
    """A role's journal, if it has one."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal

    @property
    def run(self) -> str:
        """The name of the run."""
        return self.journal.run if self.journal is not None else ""

    async def commit(
        self,
        node: Node,
        rounds: int,
        state: RoleState,
        metrics: Mapping[str, float],
        certificate: Certificate | None = None,
    ) -> None:
        """Write the state after so many rounds, before anybody is told of it."""
        if self.journal is None:
            return
        try:
            await self.journal.commit(Commit(rounds, state, certificate, metrics))
        except JournalError as error:
            node.emit(NotDurable(f"round {rounds}", str(error)))
        else:
            node.emit(RoundCommitted(rounds, certificate))

    async def keep(self, node: Node, name: str, state: RoleState) -> None:
        """Write something else that is to be there after a restart."""
        if self.journal is None:
            return
        try:
            await self.journal.keep(name, state)
        except JournalError as error:
            node.emit(NotDurable(f"what is kept as {name!r}", str(error)))
