"""Performance-based neighbour selection: nodes find those whose data are like their own, and gossip with them alone.

N. Onoszko, G. Karlsson, O. Mogren, E. Listo Zec: "Decentralized Federated Learning of Deep Neural Networks on Non-IID
Data", FL-ICML workshop 2021, https://arxiv.org/abs/2107.08517.

In every round a node trains, and gives its model to a few others that it picks at random.

Selection, the first rounds. A node keeps the last model of each that has sent one. Of `candidates` of them it takes the
`best` with the lowest loss on its own training examples: its next model is the mean of these and of its own. If data
told nothing, a node would be among the best in best / candidates of the comparisons that it is in. Who is more often
becomes a neighbour.

After that, a node gives its model to neighbours alone, and its next model is the mean of its own and of what came.

Deviations: the authors' simulation compares how often a node was among the best to how often it was sent something;
here it is to how often it was compared. A node takes only models of its own neighbours, even if others have chosen it.
Who has found no neighbours goes on with all.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState
from p2pfl.courses.dpsgd import Model
from p2pfl.courses.gossip import GossipSettings
from p2pfl.courses.learner import Learner
from p2pfl.courses.paced import Letter, Mailbox, Paced, paced
from p2pfl.errors import require
from p2pfl.journal.journal import Journal
from p2pfl.node.events import RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["PENS", "PensSettings", "Seeker", "Tally"]


@dataclass(frozen=True, slots=True)
class PensSettings(GossipSettings):
    """The table [course] of a course file."""

    name: str = "pens"
    rounds: int = 60
    """How often each node trains and averages."""
    selection_rounds: int = 30
    """In the first so many rounds nodes look for neighbours."""
    candidates: int = 4
    """So many models are compared at a time; or those of all whom the topology gives, if they are fewer."""
    best: int = 2
    """Of these, so many are taken."""
    fanout: int = 1
    """To how many others a node gives its model in a round."""
    wait_seconds: float = 5.0
    """After training, a round waits so long for models."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        rounds = self.selection_rounds
        require(rounds >= 1, f"course.selection_rounds is {rounds}; it must be at least 1")
        require(self.candidates >= 2, f"course.candidates is {self.candidates}; it must be at least 2")
        fewer = 1 <= self.best < self.candidates
        require(fewer, f"course.best is {self.best}; it must lie in 1 to below course.candidates, {self.candidates}")
        require(self.fanout >= 1, f"course.fanout is {self.fanout}; it must be at least 1")
        require(self.wait_seconds > 0, f"course.wait_seconds is {self.wait_seconds:g}; it must be above 0")

    @property
    def is_personal(self) -> bool:
        return True


class Tally:
    """How often others were compared, and how often they were among the best, by seat.

    >>> tally = Tally()
    >>> tally.note([1, 2, 3, 4], [2, 3])
    >>> tally.note([1, 2, 3, 5], [3, 5])
    >>> tally.chosen(2, 4)
    (3, 5)
    """

    def __init__(self) -> None:
        self.compared: Counter[int] = Counter()
        self.won: Counter[int] = Counter()

    def note(self, candidates: Iterable[int], best: Iterable[int]) -> None:
        """One comparison."""
        self.compared.update(iter(candidates))  # of a mapping, it would add the values
        self.won.update(iter(best))

    def chosen(self, best: int, candidates: int) -> tuple[int, ...]:
        """Who has won more often than `best` of `candidates` do by chance."""
        return tuple(seat for seat in sorted(self.won) if self.won[seat] * candidates > self.compared[seat] * best)

    def state(self) -> RoleState:
        """What it has to remember between rounds."""
        compared = {f"compared {seat}": many for seat, many in self.compared.items()}
        return compared | {f"won {seat}": many for seat, many in self.won.items()}

    @classmethod
    def restored(cls, state: RoleState) -> Tally:
        """From the state of the whole role."""
        tally = cls()
        for name, counts in (("compared ", tally.compared), ("won ", tally.won)):
            counts.update({int(key.removeprefix(name)): int(state[key]) for key in state if key.startswith(name)})
        return tally


class Seeker(Paced):
    """One node. Its neighbours are those that it has chosen of all whom the topology gives it."""

    _settings: PensSettings

    def __init__(
        self,
        learner: Learner,
        settings: PensSettings,
        neighbors: tuple[int, ...],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(learner, settings, neighbors, stop, journal)
        self.tally = Tally()
        self._mail = Mailbox()
        self._compared = min(settings.candidates, len(neighbors))  # at a time

    @property
    def chosen(self) -> tuple[int, ...]:
        """The seats that it gossips with: all, as long as it looks for them."""
        if self._round < self._settings.selection_rounds:
            return self._neighbors
        return self.tally.chosen(self._settings.best, self._compared) or self._neighbors

    def state(self) -> RoleState:
        return {**super().state(), **self.tally.state(), **self._mail.state()}

    def resume(self, state: RoleState) -> None:
        super().resume(state)
        self.tally, self._mail = Tally.restored(state), Mailbox.restored(state)

    async def _play(self, node: Node, round: int) -> None:
        node.emit(RoundStarted(round + 1, 1))
        fitted = await self._training.fit(node, self._learner, self.params, round)
        trained = self.params if fitted is None else fitted.params
        selects, chosen = round < self._settings.selection_rounds, self.chosen
        await self._exchange(node, round, trained, chosen)
        heard = await self._best() if selects else self._mail_of(chosen)
        self.params = torch.stack([trained, *heard]).mean(0)
        await self._close(node, round, fitted, trained, heard, {} if selects else {"neighbors": len(chosen)})

    async def _exchange(self, node: Node, round: int, trained: Tensor, seats: Collection[int]) -> None:
        """Give our model to some of those who sit there, and wait for models of others."""
        picked = self._picked(node, seats, self._settings.fanout, self._draw("recipients", round))
        until = asyncio.get_running_loop().time() + self._settings.wait_seconds
        with node.waiting(f"models of round {round + 1}"):
            await node.tell_all(picked, Model(round, self._learner.tensors(trained)))
            await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))

    async def _best(self) -> list[Tensor]:
        """The models that are best for our own examples, once there are as many as are to be compared."""
        if len(self._mail) < self._compared:
            return []
        candidates = {seat: self._mail.pop(seat).params for seat in list(self._mail)[: self._compared]}
        losses = {seat: await self._loss(params) for seat, params in candidates.items()}
        best = sorted(candidates, key=lambda seat: (losses[seat], seat))[: self._settings.best]
        self.tally.note(candidates, best)
        return [candidates[seat] for seat in best]

    async def _loss(self, params: Tensor) -> float:
        """On our training examples; of a model that is beyond all use, infinite."""
        assert self._learner.shard is not None, "every seat has examples"
        loss = (await self._learner.evaluate(params, self._learner.shard, own=False)).loss
        return loss if math.isfinite(loss) else math.inf

    def _mail_of(self, seats: Collection[int]) -> list[Tensor]:
        """What came from those who sit there, in the order of the seats. What came from others is let go."""
        box, self._mail = self._mail, Mailbox()
        return [box[seat].params for seat in sorted(box) if seat in seats]

    @Model.handler
    def model(self, message: Model, peer: Peer) -> None:
        seat = self._sender(message, peer)
        if (vector := self._sound(message, peer)) is not None:
            self._mail[seat] = Letter(vector, self._round)


PENS = paced("pens", PensSettings, Seeker)
