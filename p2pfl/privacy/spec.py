"""The table [privacy] of a course file."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from p2pfl.errors import require

__all__ = ["PrivacySpec"]

_MODES = ("plain", "cdp", "ldp", "ddp", "decor")
_ADJACENCY = {"zero-out": 1.0, "replace-one": 2.0}
_MECHANISMS = ("independent", "tree")


@dataclass(frozen=True, slots=True)
class PrivacySpec:
    """How much others may learn of what one node holds. The unit is the node, with all its data.

    Nothing is claimed for sampling: whoever takes part in a peer-to-peer network is seen to.
    """

    mode: str = "plain"
    """`plain`: no noise; `cdp`: the coordinator, which is trusted, adds noise to the sum of clipped updates; `ldp`:
    each node adds noise to its own update; `ddp`: each adds a share of noise that protects the sum of a secure
    aggregation (course.privacy), and the coordinator sees nothing else; `decor`: in gossip, noise that cancels between
    neighbours, and a little more."""
    clip: float = 1.0
    """The L2 norm that a whole update has at most; the first one, if it adapts."""
    noise_multiplier: float = 0.0
    """Standard deviation of the noise, as a multiple of clip; or give epsilon, and it is found."""
    epsilon: float = 0.0
    """What all rounds together may cost, if noise_multiplier is to be found."""
    delta: float = 0.0
    """The delta that goes with every epsilon; 0: 1 / n^1.1, n being the nodes that hold data."""
    epsilon_max: float = 0.0
    """No node, and no coordinator, releases what would make its epsilon larger, over all runs with the same data; 0: no
    limit."""
    participations: int = 0
    """In so many rounds a client takes part at most, and refuses more; 0: in all."""
    adjacency: str = "zero-out"
    """`zero-out`: a node's update is there or is zero; `replace-one`: it may be any other, which takes twice the
    noise."""
    mechanism: str = "independent"
    """With `cdp`: noise of its own for each round (`independent`), or by the nodes of a binary tree over the rounds
    (`tree`), which is better where each client takes part in few of many rounds."""
    quantile: float = 0.0
    """With `cdp`: clip moves to where it lets this share of the updates pass, such as 0.5; 0: it is fixed."""
    correlated: float = 10.0
    """With `decor`: standard deviation of the noise that cancels, as a multiple of the rest."""
    colluders: int = 1
    """With `decor`: so many nodes may tell each other all they know."""
    deterministic_noise: bool = False
    """For tests only: the noise follows from the seed, and protects nobody."""

    def __post_init__(self) -> None:
        for name, choices in {"mode": _MODES, "adjacency": tuple(_ADJACENCY), "mechanism": _MECHANISMS}.items():
            value = getattr(self, name)
            require(value in choices, f"privacy.{name} is {value!r}; it must be one of {', '.join(choices)}")
        for name in ("noise_multiplier", "epsilon", "epsilon_max", "participations", "colluders", "correlated"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"privacy.{name} is {value}; it must be finite, and not negative")
        require(0 < self.clip < math.inf, f"privacy.clip is {self.clip}; it must be above 0, and finite")
        for name in ("delta", "quantile"):
            value = getattr(self, name)
            require(0 <= value < 1, f"privacy.{name} is {value}; it must lie in [0, 1)")
        if self.plain:
            given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
            require(
                not given, f"privacy.{', privacy.'.join(given)} is given, and privacy.mode is 'plain'; set the mode"
            )
            return
        either = (self.noise_multiplier > 0) != (self.epsilon > 0)
        require(either, f"privacy.mode is {self.mode!r}; give one of privacy.noise_multiplier and privacy.epsilon")
        for name, value, mode in (("mechanism", "tree", "cdp"), ("quantile", self.quantile, "cdp")):
            wrong = getattr(self, name) == value and value and self.mode != mode
            require(
                not wrong, f"privacy.{name} is {value!r}, which goes with privacy.mode = {mode!r} only; leave it out"
            )
        both = self.mechanism == "tree" and self.quantile
        require(not both, "privacy.quantile does not go with privacy.mechanism = 'tree'; set it to 0")

    @property
    def plain(self) -> bool:
        """Whether nothing is added."""
        return self.mode == "plain"

    @property
    def sensitivity(self) -> float:
        """By how much, as a multiple of clip, the sum of the updates changes with one node."""
        return _ADJACENCY[self.adjacency]
