"""The mass of one node in push-sum, and the book on where it went. No clock, no I/O.

A share leaves the purse when it is cut off, and stays on the books until its fate is known: acknowledged (the receiver
has it), taken back (the receiver does not have it, and never will), or else in doubt. A share in doubt is offered again
under its old round; the receiver knows it by sender and round, so it counts once however often it comes. Hence

    weight + waiting + under way = born + taken - sent - forfeited          for each node, and
    sum over all nodes of weight, waiting and under way = sum of born - sum of forfeited,

in which a share that its receiver has, and whose sender does not know it yet, counts once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.topology.weights import push_sum_share

__all__ = ["Ledger", "Purse", "Share", "whole"]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A part of a node's mass. A sender cuts off at most one for each receiver in a round, in the order of rounds."""

    round: int
    weight: float
    value: Tensor
    """The part of x, flat; not to be written to. What it says of the model is value / weight."""


@dataclass(slots=True)
class Ledger:
    """Weights that have come and gone, added up."""

    born: float = 0.0  # brought into the course
    taken: float = 0.0  # received from others
    sent: float = 0.0  # acknowledged by others
    returned: float = 0.0  # cut off, and taken back
    forfeited: float = 0.0  # given up for good


@dataclass(slots=True, eq=False)
class Purse:
    """What one node has: x (`value`, flat) and w (`weight`). Rounds count from 0."""

    value: Tensor
    weight: float = 1.0
    ledger: Ledger = field(default_factory=Ledger)
    waiting: dict[tuple[int, int], Share] = field(default_factory=dict)  # (round, sender): taken, and not merged yet
    outgoing: dict[int, list[Share]] = field(default_factory=dict)  # receiver -> cut off, without an answer so far
    seen: dict[int, int] = field(default_factory=dict)  # sender -> round of the last share that was taken from it

    def __post_init__(self) -> None:
        if self.ledger == Ledger():
            self.ledger.born = self.weight

    # -- giving ----------------------------------------------------------------------------------------------------

    def move(self, step: Tensor) -> None:
        """Add what was learned. It has no weight."""
        self.value = self.value + step

    def split(self, round: int, receivers: Collection[int]) -> None:
        """Cut off equal shares for these receivers, and keep as much: only the sender needs its out-degree."""
        part = push_sum_share(len(receivers))
        share = Share(round, self.weight * part, self.value * part)
        self.weight, self.value = share.weight, share.value
        for receiver in receivers:
            self.outgoing.setdefault(receiver, []).append(share)

    def hand_over(self, round: int, receiver: int) -> None:
        """Cut off everything, for one receiver."""
        self.merge()
        self.outgoing.setdefault(receiver, []).append(Share(round, self.weight, self.value))
        self.weight, self.value = 0.0, torch.zeros_like(self.value)

    def forfeit(self, weight: float, value: Tensor) -> None:
        """Give up so much for good."""
        self.weight, self.value = self.weight - weight, self.value - value
        self.ledger.forfeited += weight

    def due(self, receiver: int) -> Share | None:
        """The oldest share for this receiver that has no answer. They are to be offered one after the other."""
        return self.outgoing[receiver][0] if receiver in self.outgoing else None

    def acknowledge(self, receiver: int) -> None:
        """The receiver has the oldest share."""
        self.ledger.sent += self._settle(receiver).weight

    def take_back(self, receiver: int) -> None:
        """The receiver does not have the oldest share, and never will."""
        share = self._settle(receiver)
        self.weight, self.value = self.weight + share.weight, self.value + share.value
        self.ledger.returned += share.weight

    def _settle(self, receiver: int) -> Share:
        share = self.outgoing[receiver].pop(0)
        if not self.outgoing[receiver]:
            del self.outgoing[receiver]
        return share

    # -- taking ----------------------------------------------------------------------------------------------------

    def take(self, sender: int, share: Share) -> bool:
        """Take a share in, to be merged later. False: it has been taken before, and counts no more."""
        if share.round <= self.seen.get(sender, -1):
            return False
        self.seen[sender] = share.round
        self.waiting[share.round, sender] = share
        self.ledger.taken += share.weight
        return True

    def merge(self, round: float = math.inf) -> dict[int, Share]:
        """Add the shares of all rounds up to this one, in the order of rounds and senders; the last of each sender."""
        ripe = sorted(key for key in self.waiting if key[0] <= round)
        if ripe:
            self.value = self.value.clone()
        merged: dict[int, Share] = {}
        for key in ripe:
            share = merged[key[1]] = self.waiting.pop(key)
            self.value.add_(share.value)
            self.weight += share.weight
        return merged

    # -- accounts --------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> float:
        """Weight that has been cut off, and has no answer."""
        return math.fsum(share.weight for shares in self.outgoing.values() for share in shares)

    @property
    def unexplained(self) -> float:
        """By how much the weight differs from what the ledger says. It is 0 but for rounding."""
        book = self.ledger
        held = self.weight + math.fsum(share.weight for share in self.waiting.values()) + self.under_way
        return held - (book.born + book.taken - book.sent - book.forfeited)

    def state(self) -> RoleState:
        """All of it, by name; see Resumes."""
        found: dict[str, Tensor | int | float] = {"value": self.value, "weight": self.weight}
        found |= {f"ledger.{name}": amount for name, amount in asdict(self.ledger).items()}
        found |= {f"seen.{sender}": round for sender, round in self.seen.items()}
        for (round, sender), share in self.waiting.items():
            found |= {f"waiting.{sender}.{round}.weight": share.weight, f"waiting.{sender}.{round}.value": share.value}
        for receiver, shares in self.outgoing.items():
            for share in shares:
                key = f"outgoing.{receiver}.{share.round}"
                found |= {f"{key}.weight": share.weight, f"{key}.value": share.value}
        return found

    @classmethod
    def restored(cls, state: RoleState) -> Purse:
        """A purse that goes on from there."""
        purse = cls(as_tensor(state["value"]), float(state["weight"]))
        purse.ledger = Ledger(**{item.name: state[f"ledger.{item.name}"] for item in fields(Ledger)})  # type: ignore[arg-type]  # the same
        for name in sorted(state, key=_order):
            match name.split("."):
                case ["seen", sender]:
                    purse.seen[int(sender)] = int(state[name])
                case ["waiting", sender, round, "value"]:
                    purse.waiting[int(round), int(sender)] = _share(state, name)
                case ["outgoing", receiver, round, "value"]:
                    purse.outgoing.setdefault(int(receiver), []).append(_share(state, name))
        return purse


def _order(name: str) -> tuple[int, ...]:
    """By seat, then by round."""
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


def _share(state: RoleState, name: str) -> Share:
    weight = state[name.removesuffix("value") + "weight"]
    return Share(int(name.split(".")[2]), float(weight), as_tensor(state[name]))


def whole(purses: Mapping[int, Purse]) -> tuple[float, Tensor]:
    """w and x of all these nodes, by seat, and of what is under way from them: float64, to compare with n and its sum.

    What is under way to a node that is not among them counts: it may yet be taken back. So what is missing from the
    number of nodes is the mass of those that are not among them, and what they have forfeited.

    >>> ann, bob = Purse(torch.tensor([1.0])), Purse(torch.tensor([3.0]))
    >>> ann.split(0, [1])
    >>> whole({0: ann, 1: bob})
    (2.0, tensor([4.], dtype=torch.float64))
    >>> bob.take(0, ann.outgoing[1][0])  # and the acknowledgement is lost
    True
    >>> whole({0: ann, 1: bob})
    (2.0, tensor([4.], dtype=torch.float64))
    """
    parts = [(purse.weight, purse.value) for purse in purses.values()]
    for sender, purse in purses.items():
        parts += [(share.weight, share.value) for share in purse.waiting.values()]
        for receiver, shares in purse.outgoing.items():
            known = purses[receiver].seen.get(sender, -1) if receiver in purses else -1
            parts += [(share.weight, share.value) for share in shares if share.round > known]
    return math.fsum(weight for weight, _ in parts), torch.stack([value.double() for _, value in parts]).sum(0)
