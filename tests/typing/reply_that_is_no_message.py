"""A reply is a message."""

from __future__ import annotations

from p2pfl import Request


class Count(Request[int]):  # E: type-var
    pass
