"""What a simulation shows: the events of all nodes, gathered by round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean

from p2pfl.courses.scores import CLIENT, ClientsEvaluated
from p2pfl.learn.specs import MetricsSpec
from p2pfl.learn.spread import summaries
from p2pfl.node.events import CourseEnded, Event, RoundEnded, UpdateMissing
from p2pfl.sim.network import Network

__all__ = ["Recorder", "Round", "seconds_to_accuracy"]

_LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True, slots=True)
class Round:
    """One round, over all nodes that play rounds. Metrics are means over the nodes that gave them."""

    round: int
    virtual_seconds: float  # when the last node was through with it
    bytes: int  # sent by all nodes so far
    participants: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Recorder:
    """An observer of a World. `expected` is how many nodes end each round by themselves: 1 with a coordinator."""

    wire: Network
    expected: int
    ended: Callable[[Round], None]  # told of each round once all nodes are through with it
    told: Callable[[float, int, Event], None]  # told of every other event that a person may want to know of
    bytes_before: int = 0  # sent in earlier worlds of the same run
    measured: MetricsSpec = field(default_factory=MetricsSpec)
    rounds: list[Round] = field(default_factory=list)
    reason: str = ""
    missing: int = 0  # updates that rounds went on without
    _open: defaultdict[int, dict[int, RoundEnded]] = field(default_factory=lambda: defaultdict(dict))  # by seat

    def __call__(self, seconds: float, seat: int, event: Event) -> None:
        match event:
            case RoundEnded(round) if self.expected == 1 and self.rounds and round <= self.rounds[-1].round:
                pass  # by a second one who led it, for as long as it heard of no other
            case RoundEnded():
                parts = self._open[event.round]
                parts[seat] = event
                if len(parts) == self.expected:
                    del self._open[event.round]
                    self._close(seconds, parts)
            case UpdateMissing():
                self.missing += 1
                self.told(seconds, seat, event)
            case CourseEnded(_, reason):
                self.reason = reason
                self.told(seconds, seat, event)
            case _:
                self.told(seconds, seat, event)

    def _close(self, seconds: float, by_seat: dict[int, RoundEnded]) -> None:
        parts = list(by_seat.values())
        names = sorted({name for part in parts for name in part.metrics})
        values = {name: [part.metrics[name] for part in parts if name in part.metrics] for name in names}
        metrics = {name: fmean(found) for name, found in values.items()}
        if self.expected > 1 and "accuracy" in values:
            metrics["accuracy_min"] = min(values["accuracy"])
        if self.expected > 1 and self.measured.clients:
            metrics |= self._spread(seconds, by_seat)
        sent, participants = self.bytes_before + self.wire.bytes, sum(part.participants for part in parts)
        done = Round(parts[0].round, seconds, sent, participants, metrics)
        self.rounds.append(done)
        self.ended(done)

    def _spread(self, seconds: float, by_seat: dict[int, RoundEnded]) -> dict[str, float]:
        """What is to be told of the nodes beside their mean."""
        names = {f"{where}{name}" for where in ("", CLIENT) for name in self.measured.names}
        found = {
            seat: {name: part.metrics[name] for name in part.metrics if name in names}
            for seat, part in sorted(by_seat.items())
        }
        scores = {seat: metrics for seat, metrics in found.items() if metrics}
        if scores and "each" in self.measured.clients:
            round = next(iter(by_seat.values())).round
            self.told(seconds, min(by_seat), ClientsEvaluated(round, scores))
        return summaries(scores, self.measured)


def seconds_to_accuracy(rounds: Iterable[Round], target: float = 0.0) -> dict[str, float]:
    """The first virtual second at which each accuracy was reached, of 0.5, 0.8, 0.9, 0.95, 0.98, 0.99 and `target`.

    The accuracy is the mean over the nodes that measure it, or that over clients where there is no other.

    >>> seconds_to_accuracy([Round(1, 30.0, 0, 1, {"accuracy": 0.6}), Round(2, 60.0, 0, 1, {"accuracy": 0.85})], 0.7)
    {'0.5': 30.0, '0.7': 60.0, '0.8': 60.0}
    """
    reached: dict[str, float] = {}
    levels = sorted({*_LEVELS, target} - {0.0})
    for done in rounds:
        accuracy = done.metrics.get("accuracy", done.metrics.get("client_accuracy", 0.0))
        reached |= {
            f"{level:g}": done.virtual_seconds for level in levels if f"{level:g}" not in reached and accuracy >= level
        }
    return reached
