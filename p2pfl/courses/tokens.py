"""How often a node may send: token accounts, which react at once to what comes and still keep to a rate.

G. Danner, M. Jelasity: "Token Account Algorithms: The Best of the Proactive and Reactive Worlds", ICDCS 2018,
https://doi.org/10.1109/ICDCS.2018.00090.

A node is granted one token in each period, and a message costs one. With a tokens in the account, the token of a period
is spent at once with probability P(a), and saved otherwise; when a message has come, R(a, useful) are sent. R is never
above a, and P is 1 at the capacity C. So in any t periods no more than t + C messages are sent, and the account never
holds more than C; and who gets no messages goes on to send one in each period, so that they never die out.

    proactive      P = 1                                             R = 0
    simple         P = 1 if a >= C, else 0                           R = 1 if a > 0, else 0
    generalized    as simple                                         R = floor((A - 1 + a) / A); 2 A if not useful
    randomized     P = (a - A + 1) / (C - A + 1), within [0, 1]      R = a / A rounded at random if useful, else 0

A, the reactivity, says how slowly the account is spent: 1 spends all of it at once. Where all messages are useful, a
randomized account holds A C / (C + 1) on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

__all__ = ["Account", "Generalized", "Proactive", "Randomized", "Simple", "Strategy"]


class Strategy(Protocol):
    """When to spend tokens."""

    def proactive(self, tokens: int) -> float:
        """The probability that the token of a period is spent at once."""

    def reactive(self, tokens: int, *, useful: bool) -> float:
        """How many messages to send when one has come; a fraction is the probability of one more."""


@dataclass(frozen=True, slots=True)
class Proactive:
    """One message in each period, whatever comes: plain gossip."""

    def proactive(self, tokens: int) -> float:
        return 1.0

    def reactive(self, tokens: int, *, useful: bool) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Simple:
    """One message for each that comes, as long as there are tokens.

    >>> [Simple(3).proactive(a) for a in (2, 3)], [Simple(3).reactive(a, useful=False) for a in (0, 1, 3)]
    ([0.0, 1.0], [0.0, 1.0, 1.0])
    """

    capacity: int

    def proactive(self, tokens: int) -> float:
        return float(tokens >= self.capacity)

    def reactive(self, tokens: int, *, useful: bool) -> float:
        return float(tokens > 0)


@dataclass(frozen=True, slots=True)
class Generalized(Simple):
    """The more, the more tokens there are.

    >>> [Generalized(6, 2).reactive(a, useful=True) for a in range(7)]
    [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    >>> [Generalized(6, 2).reactive(a, useful=False) for a in range(7)]
    [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """

    reactivity: int

    def reactive(self, tokens: int, *, useful: bool) -> float:
        return float((self.reactivity - 1 + tokens) // (self.reactivity if useful else 2 * self.reactivity))


@dataclass(frozen=True, slots=True)
class Randomized(Generalized):
    """The same by chance: the fuller the account, the likelier it is that something is sent without any reason.

    >>> [Randomized(4, 2).proactive(a) for a in range(5)], [Randomized(4, 2).reactive(a, useful=True) for a in range(5)]
    ([0.0, 0.0, 0.3333333333333333, 0.6666666666666666, 1.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    """

    def proactive(self, tokens: int) -> float:
        spare = tokens - self.reactivity + 1
        return min(1.0, max(0.0, spare / (self.capacity - self.reactivity + 1)))

    def reactive(self, tokens: int, *, useful: bool) -> float:
        return tokens / self.reactivity if useful else 0.0


@dataclass(slots=True)
class Account:
    """The tokens of one node."""

    strategy: Strategy
    tokens: int = 0

    def grant(self, draw: Random) -> bool:
        """A period is over. True: send one message now. False: its token is saved."""
        if draw.random() < self.strategy.proactive(self.tokens):
            return True
        self.tokens += 1
        return False

    def reaction(self, draw: Random, *, useful: bool) -> int:
        """How many messages to send now that one has come; each is to be `spent`."""
        many = self.strategy.reactive(self.tokens, useful=useful)
        return int(many) + (draw.random() < many % 1)

    def spend(self, messages: int) -> None:
        """So many messages were sent on account of one that came."""
        assert 0 <= messages <= self.tokens, f"{messages} messages are more than {self.tokens} tokens"
        self.tokens -= messages
