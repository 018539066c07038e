"""What clients have found of one model, and how it is told: as one mean, and in what other forms are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pfl.courses.messages import Rating, Score, number
from p2pfl.learn.specs import MetricsSpec
from p2pfl.learn.spread import summaries
from p2pfl.node.events import Event

__all__ = ["BY_CLIENTS", "CLIENT", "UNSEEN", "ClientsEvaluated", "Scores", "weighted_mean"]

CLIENT = "client_"
"""Before the name of a metric that was measured on examples of clients."""
UNSEEN = "unseen_"
"""The same for clients that never train."""
BY_CLIENTS = (CLIENT, UNSEEN)


@dataclass(frozen=True, slots=True)
class ClientsEvaluated(Event):
    """What each client has found after a round, from 1: metrics by seat."""

    round: int
    clients: Mapping[int, Mapping[str, float]]

    def __str__(self) -> str:
        return f"{len(self.clients)} clients have evaluated the model of round {self.round}"


class Scores:
    """Scores, as they come. What has not the name of a known metric, or is no number, does not count."""

    def __init__(self, spec: MetricsSpec) -> None:
        self._spec = spec
        self._answers: list[Rating] = []
        self._clients: dict[int, Rating] = {}

    def take(self, seat: int, score: Score) -> None:
        """The score of who sits there."""
        self._answers.append(score.rating)
        if self._spec.clients:
            each = score.clients or {str(seat): score.rating}
            self._clients |= {int(place): rating for place, rating in each.items()}

    def merged(self, *, each: bool) -> Score:
        """All of them as one. `each`: with those that they are made of, if any summary of them is wanted."""
        clients = {str(seat): rating for seat, rating in sorted(self._clients.items())} if each else {}
        return Score(Rating(self._means(), sum(rating.num_examples for rating in self._answers)), clients)

    @property
    def by_client(self) -> dict[int, dict[str, float]]:
        """The metrics of each client by seat, where the settings ask for more than means."""
        return {seat: self._known(rating) for seat, rating in sorted(self._clients.items())}

    def figures(self, prefix: str) -> dict[str, float]:
        """The means, weighted by the numbers of examples, and what else the settings ask for."""
        found = self._means() | summaries(self.by_client, self._spec)
        return {f"{prefix}{name}": value for name, value in found.items()}

    def _means(self) -> dict[str, float]:
        known = [(self._known(rating), rating.num_examples) for rating in self._answers]
        means = {name: weighted_mean((found.get(name), count) for found, count in known) for name in self._spec.names}
        return {name: value for name, value in means.items() if value is not None}

    def _known(self, rating: Rating) -> dict[str, float]:
        found = {name: number(rating.metrics.get(name)) for name in self._spec.names}
        return {name: value for name, value in found.items() if value is not None}

    def __repr__(self) -> str:
        return f"<Scores of {len(self._answers)}>"


def weighted_mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    """The weighted mean of those numbers that are there; exact, so that the order does not matter."""
    there = [(value, weight) for value, weight in weighted if value is not None and weight > 0]
    total = sum(weight for _, weight in there)
    return math.fsum(value * weight for value, weight in there) / total if total else None
