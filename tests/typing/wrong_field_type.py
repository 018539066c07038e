"""A value of another type than the field."""

from __future__ import annotations

from p2pfl import Message, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


def build() -> Grade:
    return Grade("one")  # E: arg-type
