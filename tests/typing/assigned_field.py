"""Messages are frozen."""

from __future__ import annotations

from p2pfl import Message, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


def change(ask: Grade) -> None:
    ask.round = 2  # E: misc
