"""What a scenario has shown: medians, ratios to the hand loop, and whether all have done the same work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from tests.benchmarks.simulation.subject import Measured
from tests.benchmarks.simulation.workload import Scenario

__all__ = ["BASELINE", "Report"]

BASELINE = "hand loop"

_HEAD = ("", "CPU ms", "ratio", "wall ms", "ratio", "first s", "peak MB", "||w-w0||", "accuracy")


@dataclass
class Report:
    """The measurements of one scenario, by subject; the n-th of all subjects were taken one after the other."""

    name: str
    scenario: Scenario
    skipped: dict[str, str] = field(default_factory=dict)  # why a subject was not measured
    runs: dict[str, list[Measured]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # the last that a subject wrote as it failed

    def add(self, subject: str, found: Measured) -> None:
        """One more repetition of a subject."""
        self.runs.setdefault(subject, []).append(found)

    @property
    def _hand(self) -> list[Measured]:
        return self.runs.get(BASELINE, [])

    def problems(self) -> list[str]:
        """Who failed, and who has not done the work of the hand loop."""
        found = [f"{subject} FAILED: {why}" for subject, why in self.failed.items()]
        for subject, runs in self.runs.items():
            for mine, hand in zip(runs, self._hand, strict=False):
                if not math.isclose(mine.distance, hand.distance, rel_tol=self.scenario.tolerance):
                    found.append(
                        f"{subject} DIFFERS: ||w-w0|| is {mine.distance:.7g}, and should be {hand.distance:.7g}"
                    )
                elif abs(mine.accuracy - hand.accuracy) > 1.01 / self.scenario.test_examples:
                    found.append(
                        f"{subject} DIFFERS: accuracy is {mine.accuracy:.4f}, and should be {hand.accuracy:.4f}"
                    )
        return found

    def ratio(self, subject: str, of: Callable[[Measured], float]) -> float:
        """To the hand loop in the same repetition, median."""
        return median(of(mine) / of(hand) for mine, hand in zip(self.runs[subject], self._hand, strict=False))

    def text(self) -> str:
        """A table, and below it what is to be said of those that are not in it."""
        rows = [_HEAD, *(self._row(subject) for subject in self.runs)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
        notes = [f"{subject}: not measured, {why}" for subject, why in self.skipped.items()]
        checks = [f"CHECK: {problem}" for problem in self.problems()]
        title = f"{self.name}: {self.scenario.about}; {self.scenario.rounds} rounds"
        return "\n".join([title, *lines, *notes, *checks, ""])

    def _row(self, subject: str) -> tuple[str, ...]:
        def middle(of: Callable[[Measured], float]) -> float:
            return median(of(run) for run in self.runs[subject])

        return (
            subject,
            f"{middle(lambda run: run.cpu_ms):.1f}",
            f"{self.ratio(subject, lambda run: run.cpu_ms):.2f}",
            f"{middle(lambda run: run.wall_ms):.1f}",
            f"{self.ratio(subject, lambda run: run.wall_ms):.2f}",
            f"{middle(lambda run: run.first_round_seconds):.2f}",
            f"{middle(lambda run: run.peak_mb):.0f}",
            f"{middle(lambda run: run.distance):.6f}",
            f"{middle(lambda run: run.accuracy):.4f}",
        )

    def plain(self) -> dict[str, Any]:
        """For JSON: every single measurement."""
        return {
            "name": self.name,
            "scenario": asdict(self.scenario),
            "runs": {subject: [asdict(run) for run in runs] for subject, runs in self.runs.items()},
            "cpu_ratio": {subject: self.ratio(subject, lambda run: run.cpu_ms) for subject in self.runs},
            "wall_ratio": {subject: self.ratio(subject, lambda run: run.wall_ms) for subject in self.runs},
            "skipped": self.skipped,
            "problems": self.problems(),
        }
