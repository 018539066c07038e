"""A field without a default that is not given."""

from __future__ import annotations

from p2pfl import Message, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


def build() -> Grade:
    return Grade()  # E: call-arg
