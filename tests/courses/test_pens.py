import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses.dpsgd import Model
from p2pfl.courses.pens import PENS, PensSettings, Seeker, Tally
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from tests.courses.kit import At, Played, local_training

STILL = TrainSpec(lr=0.0)


def pens(topology, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = PensSettings(**{"rounds": 8, "selection_rounds": 4, "evaluators": 0} | more)
    return Played(PENS, settings, topology, recast=recast, **own)


def seekers(played):
    return [played.world.seats[seat].roles[0] for seat in range(played.topology.n)]


# -- who is chosen -----------------------------------------------------------------------------------------------------


def test_who_wins_just_as_often_as_by_chance_is_not_chosen():
    tally = Tally()
    for winners in ([1, 2], [1, 3], [1, 4], [2, 3]):
        tally.note([1, 2, 3, 4], winners)
    assert tally.won == {1: 3, 2: 2, 3: 2, 4: 1}
    assert tally.chosen(2, 4) == (1,)


@given(st.integers(2, 8), st.data())
def test_chance_is_counted_without_rounding(candidates, data):
    best = data.draw(st.integers(1, candidates - 1))
    tally = Tally()
    for start in range(candidates):  # each wins in `best` of `candidates`
        tally.note(range(candidates), [(start + step) % candidates for step in range(best)])
    assert tally.chosen(best, candidates) == ()
    tally.note(range(candidates), range(best))
    assert tally.chosen(best, candidates) == tuple(range(best))


groups = pytest.mark.parametrize("kind", ["labels", "rotations"])


def in_two_groups(played, kind):
    """Odd seats see their images upside down, or call a 0 a 1, a 1 a 2, and so on."""
    other = replace(played.data, y=(played.data.y + 1) % 10)
    for seat in range(1, played.topology.n, 2):
        shard = played.shards[seat]
        changed = {"shift": Shift("rotation", 180.0)} if kind == "rotations" else {"dataset": other}
        played.shards[seat] = replace(shard, **changed)
    return played


@groups
@pytest.mark.parametrize("seed", [0, 1])
def test_nodes_find_those_whose_data_are_like_their_own(kind, seed):
    played = in_two_groups(
        pens(
            build("full", 8), rounds=20, selection_rounds=18, fanout=4, best=1, seed=seed,
            train=TrainSpec(lr=0.3, batch_size=8), split=PartitionSpec("bootstrap", examples_per_client=40),
        ),
        kind,
    ).play()  # fmt: skip
    chosen = [seeker.chosen for seeker in seekers(played)]
    assert all((other - seat) % 2 == 0 for seat, others in enumerate(chosen) for other in others)
    assert sum(map(len, chosen)) >= 20, "of 24 who are of one's own group"
    assert [played.metric("neighbors", seat) for seat in range(8)] == [[len(others)] * 2 for others in chosen]


# -- a course ----------------------------------------------------------------------------------------------------------


class Noted(Seeker):
    """Notes what came, by round, before it is looked at."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.boxes, self.picks = [], []

    async def _exchange(self, node, round, trained, seats):
        await super()._exchange(node, round, trained, seats)
        self.boxes.append({seat: letter.params for seat, letter in self._mail.items()})

    def _picked(self, node, seats, many, draw):
        found = super()._picked(node, seats, many, draw)
        self.picks.append([peer.seat for peer in found])
        return found


def noting(seat, roles):
    (role,) = roles
    return (Noted(role._learner, role._settings, role._neighbors),)


def test_it_is_what_the_paper_says():
    """Models, comparisons and neighbours against a reference of a few lines, which knows only what came."""
    n, candidates, best = 6, 3, 1
    played = pens(build("full", n), noting, candidates=candidates, best=best, fanout=2).play()
    roles = seekers(played)
    x = np.tile(played.model.initial.numpy(), (n, 1))
    won, compared, chosen = np.zeros((n, n)), np.zeros((n, n)), [set(range(n)) - {seat} for seat in range(n)]
    merged = 0
    for round in range(8):
        y = local_training(played, x, round)
        if round == 4:
            chosen = [set(np.flatnonzero(won[i] > compared[i] * best / candidates)) or chosen[i] for i in range(n)]
        for i in range(n):
            assert set(roles[i].picks[round]) <= chosen[i]
            box = roles[i].boxes[round]
            for j in (j for j in range(n) if i in roles[j].picks[round]):
                np.testing.assert_allclose(box[j], y[j], atol=2e-5)
            taken = [seat for seat in sorted(box) if seat in chosen[i]]
            if round < 4:
                taken = list(box)[:candidates] if len(box) >= candidates else []
                losses = [evaluate(box[j], played.model, played.shards[i]).loss for j in taken]
                compared[i, taken] += 1
                taken = [taken[rank] for rank in np.argsort(losses)[:best]]
                won[i, taken] += 1
            merged += len(taken)
            x[i] = np.mean([y[i], *(box[j].numpy() for j in taken)], axis=0)
    np.testing.assert_allclose(torch.stack(played.params), x, atol=2e-5)
    assert [seeker.tally.won.total() for seeker in roles] == won.sum(1).tolist()
    assert merged > 15


def test_links_that_break_and_nodes_that_go_end_nothing():
    played = pens(build("full", 5), network=NetworkSpec(latency_ms=300, loss_every_seconds=15))
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(12)
        played.world.kill(2, for_good=True)
        played.world.kill(1)
        await asyncio.sleep(9)
        await played.world.restart(1)

    played.play(weather())
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == {0, 1, 3, 4}
    assert all(bool(params.isfinite().all()) for params in played.params)


# -- what comes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def seeker():
    played = pens(build("full", 4))
    return Seeker(played.learner(0), played.settings, (1, 2, 3))


def sent(seeker, params, round=0):
    return Model(round, seeker._learner.tensors(params))


def test_the_last_model_of_each_is_kept_if_it_is_finite(seeker):
    ones = torch.ones_like(seeker.params)
    for seat, params in ((1, ones), (1, 2 * ones), (3, ones * math.nan)):
        seeker.model(sent(seeker, params), At(seat))
    assert {seat: float(letter.params[0]) for seat, letter in seeker._mail.items()} == {1: 2.0}
    with pytest.raises(RemoteProtocolError, match="has no say here"):
        seeker.model(sent(seeker, ones), At(0))


async def test_a_model_whose_loss_is_beyond_all_numbers_is_never_the_best(seeker):
    seeker.model(sent(seeker, torch.full_like(seeker.params, 1e38)), At(1))
    seeker.model(sent(seeker, torch.ones_like(seeker.params)), At(2))
    seeker.model(sent(seeker, torch.zeros_like(seeker.params)), At(3))
    assert len(await seeker._best()) == 2
    assert seeker.tally.compared == {1: 1, 2: 1, 3: 1} and seeker.tally.won == {2: 1, 3: 1}


def test_whom_it_has_chosen_survives_a_restart(seeker):
    seeker.tally.note([1, 2, 3], [1, 2])
    seeker.tally.note([1, 2, 3], [1, 3])
    seeker._round = 6
    seeker.model(sent(seeker, torch.ones_like(seeker.params)), At(2))
    again = Seeker(seeker._learner, seeker._settings, (1, 2, 3))
    again.resume(seeker.state())
    assert again.chosen == seeker.chosen == (1,)
    assert list(again._mail) == [2]


def test_who_has_found_nobody_goes_on_with_all(seeker):
    assert seeker.chosen == (1, 2, 3)
    seeker.tally.note([1, 2, 3], [1, 2])
    assert seeker.chosen == (1, 2, 3), "it still looks"
    seeker._round = 4
    assert seeker.chosen == (1, 2)
    seeker.tally = Tally()
    assert seeker.chosen == (1, 2, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("selection_rounds", 0), ("candidates", 1), ("best", 4), ("best", 0), ("fanout", 0),
     ("wait_seconds", 0.0)],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
        PensSettings(**{field: value})
