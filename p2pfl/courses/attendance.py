"""Who is left out of rounds because it has failed too often, and when it is given another chance."""

from __future__ import annotations

__all__ = ["Attendance"]

_MOST_ROUNDS = 64


class Attendance:
    """Counts failures in succession, by seat.

    After `after` of them a client is left out for one round, after the next failure for two, then four, and so on:
    truncated binary exponential back-off (R. M. Metcalfe, D. R. Boggs: "Ethernet", CACM 19(7), 1976).

    >>> attendance = Attendance(after=2)
    >>> attendance.failed(7, round=0), attendance.failed(7, round=1)
    (0, 1)
    >>> attendance.admits(7, round=2), attendance.admits(7, round=3)
    (False, True)
    """

    def __init__(self, after: int) -> None:
        """`after`: 0 leaves nobody out."""
        self._after = after
        self._failures: dict[int, int] = {}
        self._back: dict[int, int] = {}  # the round in which one that is left out is asked again

    def admits(self, seat: int, round: int) -> bool:
        """Whether it is asked in this round."""
        return self._back.get(seat, 0) <= round

    def failed(self, seat: int, round: int) -> int:
        """It gave nothing, or nothing of use. For how many rounds it is left out now."""
        failures = self._failures[seat] = self._failures.get(seat, 0) + 1
        if not self._after or failures < self._after:
            return 0
        rounds: int = min(2 ** (failures - self._after), _MOST_ROUNDS)
        self._back[seat] = round + 1 + rounds
        return rounds

    def came(self, seat: int) -> bool:
        """It gave what it was asked for. Whether it had been left out before."""
        self._failures.pop(seat, None)
        return self._back.pop(seat, None) is not None
