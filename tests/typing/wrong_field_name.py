"""A field that the message does not have."""

from __future__ import annotations

from p2pfl import Message, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


def build() -> Grade:
    return Grade(rounds=1)  # E: call-arg


def read(ask: Grade) -> None:
    print(ask.rounds)  # E: attr-defined
