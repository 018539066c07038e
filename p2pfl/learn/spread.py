"""How a metric is spread over the clients: beyond their mean, how fair it is.

Deviation, cosine and entropy measure uniformity as in T. Li, M. Sanjabi, A. Beirami, V. Smith: "Fair Resource
Allocation in Federated Learning", ICLR 2020, https://arxiv.org/abs/1905.10497, section 4 and appendix: the more even
the figures, the smaller the deviation, the nearer the cosine to 1, and the nearer the entropy to log n.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from p2pfl.learn.specs import MetricsSpec

__all__ = ["FAIRNESS", "fairness", "spread_names", "spreads", "summaries"]

FAIRNESS = ("std", "min", "max", "bottom_decile", "top_decile", "bottom10", "top10", "entropy", "cosine")
"""The names of the figures that `fairness` gives."""


def fairness(values: Sequence[float]) -> dict[str, float]:
    """Uniformity of one metric over n clients.

    `std` is the population's; the deciles are the values at places n // 10 and 9 n // 10 of the sorted ones;
    `bottom10` and `top10` the means of the lowest and highest tenth, of one client at least. `entropy` is that of
    a_k / sum(a), in nats; `cosine` that of the angle between the values and a vector of ones. These two are left out
    where they are not defined: for values below zero, or that are all zero.

    >>> {name: round(value, 3) for name, value in fairness([0.5, 1.0]).items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'std': 0.25, 'min': 0.5, 'max': 1.0, 'bottom_decile': 0.5, 'top_decile': 1.0, 'bottom10': 0.5, 'top10': 1.0,
     'entropy': 0.637, 'cosine': 0.949}
    """
    if not values:
        return {}
    ordered, n = sorted(values), len(values)
    mean, tenth = fmean(ordered), max(1, n // 10)
    found = {
        "std": math.sqrt(fmean((value - mean) ** 2 for value in ordered)),
        "min": ordered[0],
        "max": ordered[-1],
        "bottom_decile": ordered[n // 10],
        "top_decile": ordered[9 * n // 10],
        "bottom10": fmean(ordered[:tenth]),
        "top10": fmean(ordered[-tenth:]),
    }
    total = math.fsum(ordered)
    if ordered[0] >= 0 and total > 0:
        shares = [value / total for value in ordered if value > 0]
        found["entropy"] = -math.fsum(share * math.log(share) for share in shares)
        found["cosine"] = mean / math.sqrt(fmean(value**2 for value in ordered))
    return found


def summaries(scores: Mapping[int, Mapping[str, float]], spec: MetricsSpec) -> dict[str, float]:
    """What `metrics.clients` asks for, of the metrics of each client, by seat.

    >>> summaries({1: {"loss": 1.0}, 2: {"loss": 3.0}, 3: {}}, MetricsSpec(clients=("mean",)))
    {'loss_mean': 2.0}
    """
    told: dict[str, float] = {}
    for name in dict.fromkeys(name for score in scores.values() for name in score):
        by_seat = {seat: score[name] for seat, score in sorted(scores.items()) if name in score}
        if "mean" in spec.clients:
            told[f"{name}_mean"] = fmean(by_seat.values())
        if "groups" in spec.clients:
            for group, seats in spec.groups.items():
                if there := [by_seat[seat] for seat in seats if seat in by_seat]:
                    told[f"{name}@{group}"] = fmean(there)
        if "fairness" in spec.clients:
            told |= {f"{name}_{figure}": value for figure, value in fairness(list(by_seat.values())).items()}
    return told


def spreads(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The figures of `fairness`, and the means of groups, that are among these metrics, by what they are of.

    >>> spreads({"loss": 1.0, "loss_std": 0.25, "loss_min": 0.5, "accuracy_min": 0.125, "loss@north": 0.75})
    {'loss': {'@north': 0.75, 'std': 0.25, 'min': 0.5}}
    """
    found: dict[str, dict[str, float]] = {}
    for name, (of, figure) in spread_names(metrics).items():
        found.setdefault(of, {})[figure] = metrics[name]
    return found


def spread_names(metrics: Collection[str]) -> dict[str, tuple[str, str]]:
    """Which of these names stand for such a figure: of what, and which."""
    found = {name: (name.partition("@")[0], f"@{name.partition('@')[2]}") for name in metrics if "@" in name}
    for name in metrics:
        for figure in ("mean", *FAIRNESS):
            of = name.removesuffix(f"_{figure}")
            if of != name and f"{of}_std" in metrics:
                found[name] = of, figure
    return found
