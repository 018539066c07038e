"""What a peer has done against the protocol, and for how long it stays outside for that. No clock of its own."""

from __future__ import annotations

from p2pfl.node.settings import NodeSettings

__all__ = ["Conduct"]


class Conduct:
    """Strikes that add up to quarantines, each twice as long as the one before.

    Strikes count for `strike_seconds`. Quarantines are remembered for `quarantine_most_seconds` after their end: who
    has kept out of them for so long begins anew.
    """

    __slots__ = ("_settings", "_strikes", "_term", "_until")

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._strikes: list[float] = []  # when; those that count
        self._until = 0.0  # end of the last quarantine
        self._term = settings.quarantine_seconds  # how long the next one lasts

    def strike(self, now: float) -> bool:
        """Note a violation; whether a quarantine begins with it. During one there is nothing to add."""
        if self.quarantine(now):
            return False
        self._forget(now)
        self._strikes.append(now)
        if len(self._strikes) < self._settings.strikes:
            return False
        self._strikes.clear()
        self._until = now + self._term
        self._term = min(2 * self._term, self._settings.quarantine_most_seconds)
        return True

    def ban(self, now: float) -> None:
        """The longest quarantine begins, whatever was before."""
        self._strikes.clear()
        self._term = self._settings.quarantine_most_seconds
        self._until = now + self._term

    def quarantine(self, now: float) -> float:
        """Seconds for which it still stays outside; 0 if it does not."""
        return max(0.0, self._until - now)

    def spotless(self, now: float) -> bool:
        """Whether nothing is held against it: it is as good as one that was never seen."""
        if self.quarantine(now):
            return False
        self._forget(now)
        return not self._strikes and self._term == self._settings.quarantine_seconds

    def _forget(self, now: float) -> None:
        self._strikes = [strike for strike in self._strikes if now - strike < self._settings.strike_seconds]
        if now - self._until >= self._settings.quarantine_most_seconds:
            self._term = self._settings.quarantine_seconds
