"""How far the course of a node is, as its events tell: for logs, metrics and health alike."""

from __future__ import annotations

import asyncio

from p2pfl.node.events import Event, RoundEnded, RoundStarted

__all__ = ["CourseProgress"]


class CourseProgress:
    """An observer of a node: `node.observe(progress)`."""

    def __init__(self) -> None:
        self.round = 0  # the last that began; counted from 1
        self.participants = 0  # who were asked in it or, once it is over, were heard
        self.rounds_ended = 0
        self.seconds = 0.0  # that those took whose beginning was told
        self.figures: dict[str, float] = {}  # of the last round that had some, such as accuracy and loss
        self._began: float | None = None

    def push(self, event: Event) -> None:
        """Called by the node."""
        match event:
            case RoundStarted(round, participants):
                self.round, self.participants = round, participants
                self._began = asyncio.get_running_loop().time()
            case RoundEnded(round, participants, figures):
                self.round, self.participants = round, participants
                self.rounds_ended += 1
                self.figures = figures or self.figures
                if self._began is not None:
                    self.seconds += asyncio.get_running_loop().time() - self._began
                    self._began = None

    def finish(self) -> None:
        """Called by the node: nothing more will come."""

    def __repr__(self) -> str:
        return f"<CourseProgress: round {self.round}, {self.rounds_ended} ended>"
