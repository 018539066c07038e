"""Progress of a course, from its events."""

from __future__ import annotations

import asyncio

from p2pfl.app.progress import CourseProgress
from p2pfl.node.events import PeerJoined, RoundEnded, RoundStarted


async def test_rounds_are_counted_and_timed() -> None:
    progress = CourseProgress()
    for number in (1, 2):
        progress.push(RoundStarted(number, 5))
        assert (progress.round, progress.participants, progress.rounds_ended) == (number, 5, number - 1)
        await asyncio.sleep(10)
        progress.push(RoundEnded(number, 4, {"accuracy": number / 10}))
    assert (progress.round, progress.participants, progress.rounds_ended, progress.seconds) == (2, 4, 2, 20.0)
    assert progress.figures == {"accuracy": 0.2}
    assert repr(progress) == "<CourseProgress: round 2, 2 ended>"
    progress.finish()


async def test_figures_stay_until_there_are_newer_ones() -> None:
    progress = CourseProgress()
    progress.push(RoundEnded(1, 4, {"loss": 0.5}))
    progress.push(RoundEnded(2, 4))
    progress.push(PeerJoined("a"))
    assert progress.figures == {"loss": 0.5}
    assert progress.seconds == 0.0  # nobody said when they began
