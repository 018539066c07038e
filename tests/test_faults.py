"""Whole courses against everything that can go wrong: seeds of faults over five topologies, and every await cancelled.

`p2pfl fuzz` with the same course, topology and seed shows what happened in a run that fails here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from p2pfl.app.config import COURSES
from p2pfl.app.fuzz import try_seed
from p2pfl.app.trial import Trial, settled_memory
from p2pfl.courses.secagg import CONSISTENT, SecAggSpec
from p2pfl.node.events import CourseEnded, RoundStarted
from p2pfl.sim.checkers import checked
from p2pfl.sim.history import History
from p2pfl.sim.loop import VirtualLoop
from p2pfl.sim.nemesis import Corrupt, Crash, Fault, Partition
from p2pfl.sim.world import World
from p2pfl.topology.families import build

Case = tuple[str, dict[str, Any], dict[str, Any]]
SECRET = {"privacy": CONSISTENT, "weights": "equal", "secagg": SecAggSpec(bits=20)}
CASES: dict[str, Case] = {  # course, settings, topology
    "star": ("fedavg", {}, {"family": "star", "n": 5}),
    "elected": ("fedavg", {"coordinator": "elect"}, {"family": "star", "n": 5}),
    "secret": ("fedavg", SECRET, {"family": "star", "n": 8}),
    "hierarchy": ("hierarchical", {}, {"family": "hierarchy", "n": 7}),
    "ring": ("dpsgd", {}, {"family": "ring", "n": 6}),
    "varying": ("dpsgd", {}, {"family": "one-peer-exponential", "n": 4}),
    "torus": ("dpsgd", {}, {"family": "torus", "n": 9}),
    "regular": ("adpsgd", {}, {"family": "regular", "n": 8, "degree": 3}),
    "full": ("pushsum", {}, {"family": "full", "n": 4}),
}
SEEDS = int(os.environ.get("P2PFL_SEEDS", "200"))
COST = {"secret": 8}  # how much longer a run takes
Found = tuple[str, int, tuple[Fault, ...]]
REGRESSIONS: dict[str, Found] = {
    "a root that is killed after it has handed out the result": (
        "hierarchy",
        801,
        (Crash(3.61, 6.6, 0, silently=True),),
    ),
    "a node that is restarted as its neighbours leave": ("ring", 11, (Crash(0.147, 6.531, 2), Crash(1.04, 5.793, 3))),
    "a node that comes back when its neighbours have given all shares": ("full", 15, (Partition(0.923, 6.387, (3,)),)),
    "an acknowledgement that is changed on its way": ("full", 16, (Corrupt(3.341, 3.341, 1, 3),)),
}
"""What seeds have found: the case, the seed of its network, and the faults that it takes. Seeds draw other faults when
there are new kinds of them."""


@cache
def trial(case: str, rounds: int = 3) -> Trial:
    name, settings, topology = CASES[case]
    course = COURSES[name]
    chosen = course.settings(rounds=rounds, **settings)
    return Trial(course, chosen, build(**topology), checked(name, chosen))


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    with settled_memory():
        yield


@pytest.mark.parametrize("case", CASES)
def test_what_must_hold_holds_whatever_goes_wrong(case: str) -> None:
    for seed in range(SEEDS // COST.get(case, 1)):
        if failure := try_seed(trial(case), trial(case).bears, seed):
            pytest.fail(f"P2PFL_SEED={seed} on {trial(case).topology!r}\n" + "\n".join(failure.lines()))


@pytest.mark.parametrize("what", REGRESSIONS)
def test_what_was_found_once_stays_mended(what: str) -> None:
    case, seed, faults = REGRESSIONS[what]
    found, _ = trial(case).violations(seed, faults)
    assert not found, "\n".join(map(str, found))


class Stepping(VirtualLoop):
    """Calls back in its `at`-th step."""

    def __init__(self, at: int, call: Callable[[], None]) -> None:
        super().__init__()
        self.steps = 0
        self._at = at
        self._call = call

    def advance(self, seconds: float) -> None:
        """Once in each step of the loop."""
        self.steps += 1
        if self.steps == self._at:
            self.call_soon(self._call)
        super().advance(seconds)


class End:
    """Ends the node of a seat, once; `begun` says who had begun to play rounds by then."""

    def __init__(self, seat: int, history: History, world: World) -> None:
        self.begun: set[int] = set()
        self._seat = seat
        self._history = history
        self._world = world

    def cancel(self) -> None:
        """As an interrupt does: what the node plays is cancelled, and the node stops."""
        if self._still():
            there = self._world.seats[self._seat]
            assert there.life is not None
            there.life.cancel()
            self._stopping = asyncio.get_running_loop().create_task(there.node.stop())

    def kill(self) -> None:
        if self._still():
            self._world.kill(self._seat, for_good=True)

    def nothing(self) -> None:
        """It plays to its own end."""

    def _still(self) -> bool:
        self.begun = {entry.seat for entry, _ in self._history.of(RoundStarted)}
        return self._world.alive(self._seat)


def ended_in_step(subject: Trial, seat: int, step: int, how: str) -> tuple[History, set[int], int]:
    """A run in which a node meets its end in that step of the loop, who had begun then, and how many steps it took."""
    history = History(subject.n, subject.numel)
    world = subject.world(0, history)
    end = End(seat, history, world)
    with asyncio.Runner(loop_factory=lambda: Stepping(step, getattr(end, how))) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Stepping)
        runner.run(subject.haunted(world, history, ()))
        return history, end.begun, loop.steps


@pytest.mark.parametrize(
    ("name", "family", "seat", "how"),
    [
        ("fedavg", "star", 1, "cancel"),
        ("fedavg", "star", 1, "kill"),
        ("fedavg", "star", 0, "cancel"),
        ("fedavg", "star", 0, "kill"),
        ("hierarchical", "hierarchy", 1, "cancel"),
        ("hierarchical", "hierarchy", 1, "kill"),
        ("dpsgd", "ring", 1, "cancel"),
        ("dpsgd", "ring", 1, "kill"),
    ],
)
def test_a_node_that_ends_in_any_step_leaves_nothing_behind_and_the_others_go_on(
    name: str, family: str, seat: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F31: whatever it awaits in that step. Who has not begun may wait for it in vain."""
    monkeypatch.setattr("p2pfl.app.trial._PATIENCE_SECONDS", 150.0)
    course = COURSES[name]
    subject = Trial(course, course.settings(rounds=1), build(family, 5 if family == "hierarchy" else 3), ())
    go_on = ({0} if subject.leading else set(range(subject.n))) - {seat}
    _, _, steps = ended_in_step(subject, seat, -1, "nothing")
    assert steps > 50
    for step in range(1, steps):
        history, begun, _ = ended_in_step(subject, seat, step, how)
        assert not history.leftovers, f"step {step}"
        assert history.failure is None, f"step {step}"
        if go_on <= begun:
            assert not history.waits, f"step {step}"
            assert go_on <= {entry.seat for entry, _ in history.of(CourseEnded)}, f"step {step}"
