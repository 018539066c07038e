"""How often a peer may make us speak of it: what it provokes must not fill a log, or a screen."""

from __future__ import annotations

from p2pfl.link.admission import TokenBucket

__all__ = ["LINES_PER_SECOND", "LineQuota"]

LINES_PER_SECOND = 10  # at most, in any second


class LineQuota:
    """Lets through a few lines a second; the next one says how many were held back before it."""

    __slots__ = ("_bucket", "_held")

    def __init__(self, now: float) -> None:
        self._bucket = TokenBucket(LINES_PER_SECOND / 2, LINES_PER_SECOND / 2, now)  # at once, and in the second after
        self._held = 0

    def take(self, now: float) -> str | None:
        """What to end a line with that may be said now: mostly nothing. None: it must not."""
        if not self._bucket.take(now):
            self._held += 1
            return None
        held, self._held = self._held, 0
        return f" ... and {held} more" if held else ""
