"""PowerGossip against power iteration by numpy, on graphs that learn nothing, and with messages that are lost."""

import itertools

import numpy as np
import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.savings import savings
from p2pfl.app.simulate import simulate
from p2pfl.courses.learner import seed_of
from p2pfl.courses.powergossip import POWERGOSSIP, Iterated, PowerGossipSettings
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models, local_training

SHAPE = (10, 64)  # of the matrix of logistic regression on digits; behind it are ten biases


def powergossip(topology, **settings):
    return Played(POWERGOSSIP, PowerGossipSettings(**{"rounds": 5, "evaluators": 0} | settings), topology)


def drawn(seed, low, high, round, side, rank):
    """The basis that both ends begin with."""
    rng = torch.Generator().manual_seed(seed_of(seed, "power", low, high, round))
    return np.linalg.qr(torch.randn(side, rank, generator=rng).numpy())[0]


def reference(x, w, edges, bases, number, rank=1):
    """A round of algorithm 2, on all models (n, numel); the bases by edge are replaced by the next ones."""
    found = x.copy()
    for i, j in edges:
        m = (x[j] - x[i])[: 10 * 64].reshape(SHAPE)
        m = m if number % 2 == 0 else m.T
        v = bases[i, j] if (i, j) in bases else drawn(0, i, j, number, m.shape[1], rank)
        d = m @ v
        step = d @ v.T
        step = np.concatenate([(step if number % 2 == 0 else step.T).reshape(-1), (x[j] - x[i])[640:]])
        found[i] += w[i, j] * step
        found[j] -= w[j, i] * step
        bases[i, j] = np.linalg.qr(d)[0]
    return found


@pytest.mark.parametrize(
    ("topology", "rank"), [(build("chain", 2), 1), (build("chain", 2), 3), (build("star", 4), 2)], ids=repr
)
def test_it_is_power_iteration_along_every_edge(topology, rank):
    played = powergossip(topology, rank=rank).play()
    w, bases = mixing_matrix(topology).astype(np.float32), {}
    x = first_models(played)
    for number in range(5):
        x = reference(local_training(played, x, number), w, topology.edges, bases, number, rank)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


class Ring:
    """Nodes that learn nothing, driven by hand."""

    def __init__(self, topology, rank, x):
        played = powergossip(topology)
        self.topology, self.x, self.number = topology, list(x), 0
        self.steps = [Iterated(played.learner(seat), rank) for seat in range(topology.n)]

    def round(self, lost=lambda sender, receiver: False):
        shared = []
        for steps, own in zip(self.steps, self.x, strict=True):
            steps._round = self.number
            shared.append(steps.give(own, own))
        boxes = [
            {j: self.steps[j].to(shared[j], i) for j in self.topology.neighbors(i) if not lost(j, i)}
            for i in range(self.topology.n)
        ]
        for seat, steps in enumerate(self.steps):
            assert steps.row(self.topology, seat) == {}
            self.x[seat] = steps.take(self.x[seat], self.x[seat], shared[seat], boxes[seat])
        self.number += 1

    @property
    def spread(self):
        x = torch.stack(self.x)
        return float((x - x.mean(0)).square().sum())


def begun(n, rank_of_differences=10):
    chance = torch.Generator().manual_seed(0)
    left = torch.randn(n, 10, rank_of_differences, generator=chance)
    right = torch.randn(n, rank_of_differences, 64, generator=chance)
    return torch.cat([(left @ right).view(n, -1), torch.randn(n, 10, generator=chance)], dim=1)


def test_a_ring_agrees_on_the_mean_whatever_the_rank():
    for rank, rounds in ((1, 150), (3, 60)):
        x = begun(8)
        ring = Ring(build("ring", 8), rank, x)
        spread = [ring.spread]
        for _ in range(rounds):
            ring.round()
            spread.append(ring.spread)
        assert all(after <= before for before, after in itertools.pairwise(spread)), "nothing is overshot"
        assert spread[-1] < 1e-3 * spread[0]
        assert torch.allclose(torch.stack(ring.x).mean(0), x.mean(0), atol=1e-4)


def test_a_difference_of_rank_one_is_found_at_once():
    """The second round, with what was learned in the first, sends all of what is left: half of it was mixed away."""
    x = begun(2, rank_of_differences=1)
    x[1] = x[0] + torch.cat([torch.outer(torch.randn(10), torch.randn(64)).view(-1), torch.zeros(10)])
    pair = Ring(build("chain", 2), 1, x)
    pair.round()
    pair.round()
    assert pair.spread < 1e-9 * float((x - x.mean(0)).square().sum())


def test_after_a_lost_message_both_ends_begin_anew_with_one_basis():
    pair = Ring(build("chain", 2), 1, begun(2))
    pair.round()
    pair.round(lost=lambda sender, receiver: receiver == 1)
    assert [sorted(each._learned) for each in pair.steps] == [[1], []], "one end cannot know"
    before = [each.clone() for each in pair.x]
    pair.round()
    assert all(map(torch.equal, pair.x, before)), "what was learned at one end alone is not used"
    spread = pair.spread
    for _ in range(6):
        pair.round()
    assert pair.spread < 0.8 * spread
    assert all(len(each._learned) == 1 for each in pair.steps)


def test_models_that_are_equal_stay_so():
    pair = Ring(build("chain", 2), 1, begun(1).repeat(2, 1))
    pair.round()
    assert pair.spread == 0 and not pair.steps[0]._learned, "nothing can be learned from a difference of zero"


def test_it_learns_and_the_report_says_the_ratio():
    tables = {
        "course": {"name": "powergossip", "rounds": 12, "rank": 2}, "topology": {"family": "ring", "n": 6}, "seed": 7,
        "train": {"lr": 0.2, "epochs": 3, "batch_size": 10},
    }  # fmt: skip
    setup = prepare(from_mapping(tables))
    found = simulate(setup)
    assert found.rounds[-1].metrics["accuracy"] > 0.88
    numel, others = 64 * 32 + 32 + 32 * 10 + 10, 32 + 10
    left, right = others + 2 * (32 + 10) + 1, others + 2 * (64 + 32) + 1
    assert savings(setup, 0) == {"ratio": pytest.approx(2 * numel / (left + right))}
    one = (left + right) / 2 * 4
    assert found.bytes == pytest.approx(12 * 12 * one, rel=0.35), "heads and joining are the rest"


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"course.rank is 0; it must be at least 1"):
        PowerGossipSettings(rank=0)
    changing = {"course": {"name": "powergossip"}, "topology": {"family": "random-matching", "n": 4}}
    with pytest.raises(ConfigError, match="which changes; choose a family that does not"):
        simulate(prepare(from_mapping(changing)))
    steps = Ring(build("chain", 2), 1, begun(2)).steps[0]
    with pytest.raises(RemoteProtocolError, match="a basis came that was learned 7 times"):
        steps.check(torch.tensor([1.0, 7.0]))
