"""What compression has saved, for the report of a run."""

from __future__ import annotations

from p2pfl.app.build import Setup
from p2pfl.compute.inline import Inline
from p2pfl.courses.dpsgd import Mixer
from p2pfl.courses.fedavg import Server
from p2pfl.courses.parts import Parts

__all__ = ["savings"]

_FLOAT_BYTES = 4


def savings(setup: Setup, updates: int) -> dict[str, float]:
    """How many times smaller what is sent has become, and with a coordinator the bytes saved in so many updates.

    Each update is counted with what its client was sent for it; what was sent to clients that gave none is not. With
    entropy coding, what it has saved beyond that is counted at all who got something since the run was started or
    resumed.
    """
    if setup.config.compress.plain and not issubclass(Mixer, setup.course.roles):
        return {}
    tally = setup.tally
    entropy: dict[str, float] = {}
    if tally.came:
        entropy = {"entropy_ratio": tally.whole / tally.came, "entropy_bytes_saved": tally.whole - tally.came}
    role = setup.roles(0, Inline())[0]
    if isinstance(role, Mixer):
        ratio = _FLOAT_BYTES * setup.model.layout.numel / role.parts.nbytes
        return {"ratio": ratio, **entropy} if ratio > 1 else {}
    assert isinstance(role, Server), "no other course compresses"
    down, up = role.rule.down, role.rule.up
    saved = sum(_FLOAT_BYTES * parts.numel - parts.nbytes for parts in (down, up))
    return {"down_ratio": _ratio(down), "up_ratio": _ratio(up), "bytes_saved": updates * saved, **entropy}


def _ratio(parts: Parts) -> float:
    return _FLOAT_BYTES * parts.numel / parts.nbytes
