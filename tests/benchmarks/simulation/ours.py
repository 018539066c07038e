"""p2pfl, as its users run it: a course file, `prepare` and `simulate`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from p2pfl.app.build import prepare
from p2pfl.app.computes import ComputeOptions, make_compute
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from tests.benchmarks.simulation.workload import State, Work


def run(work: Work, done: Callable[[], None], compute: str = "") -> State:
    """`compute` as in `p2pfl simulate --compute`; empty: its default."""
    setup = prepare(from_mapping(msgspec.json.decode((work.folder / "course.json").read_bytes())))
    place = make_compute(ComputeOptions(compute or "auto"), auto="cohort")
    outcome = simulate(setup, place, lambda _: done())
    asyncio.run(place.close())
    layout = setup.model.layout
    names = [entry.name for entry in layout.entries]
    return dict(zip(names, layout.views(outcome.params), strict=True))
