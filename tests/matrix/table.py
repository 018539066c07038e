"""The courses, a line each: a new one is in the whole matrix, and in the test of checkpoints, by its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import COURSES as KNOWN
from p2pfl.app.config import from_mapping

__all__ = ["COURSES", "Line", "prepared", "tables_of"]

Tables = dict[str, dict[str, Any]]


class Line(NamedTuple):
    """A course. `in_step`: whether all nodes play the same rounds, so that its models do not depend on who is fast."""

    family: str
    n: int
    course: Mapping[str, Any] = {}
    more: Mapping[str, Mapping[str, Any]] = {}
    in_step: bool = True


UP = {"compress": {"up": {"select": "low-rank", "values": "sign"}}}
BOTH = {"compress": {"up": {"select": "low-rank", "values": "sign"}, "down": {"values": "qsgd"}}}
PACKED = {"compress": {way: {"values": "uniform", "entropy": "zlib"} for way in ("up", "down")}}
UNEQUAL = {"devices": {"spread": 1.0}}

# Name, and after a comma what is special about it.
COURSES: Mapping[str, Line] = {
    "fedavg": Line("star", 4, {"keep": "best"}),
    "fedavg, compressed": Line("star", 4, {}, BOTH),
    "fedavg, entropy coded": Line("star", 4, {}, PACKED),
    "fedprox": Line("star", 4, {"stragglers": 0.5}),
    "scaffold": Line("star", 4),
    "feddyn": Line("star", 4, {"alpha": 0.1}),
    "fedopt": Line("star", 4, {"server_optimizer": "yogi"}),
    "fedavgm": Line("star", 4, {"server_lr": 0.5}),
    "fednova": Line("star", 4),
    "fednova, unequal work": Line("star", 4, {}, {"nodes": {"2": {"train": {"epochs": 2}}}}),
    "fedprox, within seconds": Line("star", 4, {}, {"train": {"epochs": 3, "within_seconds": 0.5}}, in_step=False),
    "qfedavg": Line("star", 4),
    "diloco": Line("star", 4),
    "fedswa": Line("star", 4, {"swa_start": 0.3}),
    "fedbuff": Line("star", 4, {"goal": 2, "sampler": "grouped"}, UNEQUAL, in_step=False),
    "fedasync": Line("star", 4, {}, UNEQUAL, in_step=False),
    "fedbn": Line("star", 4, {"private": ["1.bias"]}),
    "fedper": Line("star", 4),
    "lgfedavg": Line("star", 4),
    "fedrep": Line("star", 4),
    "ditto": Line("star", 4),
    "pfedme": Line("star", 4),
    "apfl": Line("star", 4),
    "fedbabu": Line("star", 4),
    "perfedavg": Line("star", 4),
    "ifca": Line("star", 4),
    "fedem": Line("star", 4),
    "fedproto": Line("star", 4),
    "local": Line("star", 4),
    "pooled": Line("star", 4),
    "hierarchical": Line("hierarchy", 7, {}, {"topology": {"parameters": {"edges": 2}}}),
    "dpsgd": Line("one-peer-exponential", 4),
    "dpsgd, private": Line("ring", 4, {"private": ["1.bias"]}),
    "d2": Line("ring", 4),
    "gradtrack": Line("ring", 4),
    "qgm": Line("ring", 4),
    "dfedavgm": Line("ring", 4),
    "relaysgd": Line("chain", 4),
    "gossip-diloco": Line("ring", 4),
    "choco": Line("ring", 4, {"restart_every": 3}, UP),
    "deepsqueeze": Line("ring", 4, {}, {"compress": {"up": {"values": "qsgd"}}}),
    "powergossip": Line("ring", 4, {"rank": 2}),
    "jwins": Line("one-peer-exponential", 4),
    "epidemic": Line("full", 4, {"fanout": 2, "wait_seconds": 0.1}, in_step=False),
    "plexus": Line("full", 4, {"sample": 2, "patience_seconds": 0.5, "wait_seconds": 0.3}, in_step=False),
    "teleportation": Line("full", 4, {"sample": 3, "patience_seconds": 0.5, "wait_seconds": 0.3}, in_step=False),
    "pushsum": Line("exponential", 5),
    "gossip-learning": Line("full", 4, {"account": "randomized", "period_seconds": 0.1}, UNEQUAL, in_step=False),
    "pens": Line(
        "full", 4, {"selection_rounds": 2, "candidates": 2, "best": 1, "wait_seconds": 0.1}, UNEQUAL, in_step=False
    ),
    "swift": Line("full", 4, {}, UNEQUAL, in_step=False),  # where nobody begins before all are there
    "adpsgd": Line("ring", 4, {}, UNEQUAL, in_step=False),
}


def tables_of(name: str, **course: Any) -> Tables:
    """What a course file has to say, with these settings of the course beside its own."""
    family, n, own, more, _ = COURSES[name]
    tables: Tables = {
        "course": {"name": name.partition(",")[0], **own, **course},
        "topology": {"family": family, "n": n},
        "data": {"subsample": 0.1},
        "train": {"lr": 0.3},
    }
    for table, values in more.items():
        tables[table] = {**tables.get(table, {}), **values}
    return tables


def prepared(name: str, **course: Any) -> Setup:
    """The course, ready to be played."""
    return prepare(from_mapping({"seed": 3, **tables_of(name, **course)}))


def unlisted() -> set[str]:
    """Courses that there are and that have no line."""
    return set(KNOWN) - {name.partition(",")[0] for name in COURSES}
