from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.courses.mass import Ledger, Purse, Share, whole
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix


def purses(x, weights=None):
    """One for each row of x, in float64, which rounds less than what is tested."""
    rows = torch.as_tensor(np.asarray(x), dtype=torch.float64)
    weights = [1.0] * len(rows) if weights is None else weights
    return {seat: Purse(row * weight, weight) for seat, (row, weight) in enumerate(zip(rows, weights, strict=True))}


def exchange(nodes, number, graph):
    """A round in which all arrives."""
    for seat, purse in nodes.items():
        purse.split(number, graph.at(number).neighbors(seat))
    for seat, purse in nodes.items():
        for receiver in graph.at(number).neighbors(seat):
            assert nodes[receiver].take(seat, purse.due(receiver))
            purse.acknowledge(receiver)
    for purse in nodes.values():
        purse.merge(number)


def estimates(nodes):
    return np.stack([(purse.value / purse.weight).numpy() for purse in nodes.values()])


X = np.random.default_rng(3).normal(size=(12, 3))


# -- the algorithm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["exponential", "ring", "star", "tree"])
def test_it_is_multiplication_by_the_column_stochastic_matrix(family):
    graph = build(family, 12)
    nodes, p = purses(X), np.asarray(mixing_matrix(graph, "push-sum"))
    for number in range(5):
        exchange(nodes, number, graph)
    power = np.linalg.matrix_power(p, 5)
    weights = [purse.weight for purse in nodes.values()]
    np.testing.assert_allclose(weights, power @ np.ones(12), atol=1e-14)
    np.testing.assert_allclose(estimates(nodes), (power @ X) / (power @ np.ones((12, 1))), atol=1e-14)


def test_on_an_irregular_graph_all_approach_the_mean_where_plain_averages_do_not():
    x = np.arange(10.0)[:, None]
    graph, nodes = build("star", 10), purses(x)
    for number in range(60):
        exchange(nodes, number, graph)
    np.testing.assert_allclose(estimates(nodes), 4.5, atol=1e-9)


def test_masses_of_other_sizes_give_the_weighted_mean():
    examples = np.random.default_rng(4).integers(1, 50, 12).astype(float)
    graph, nodes = build("exponential", 12), purses(X, examples.tolist())
    for number in range(80):
        exchange(nodes, number, graph)
    np.testing.assert_allclose(estimates(nodes), np.tile(np.average(X, 0, examples), (12, 1)), atol=1e-13)


def lossy(reabsorb, seed):
    """Random push (Kempe et al.) of 32 nodes for 60 rounds, in which each share is lost with probability 0.2."""
    draw, n = Random(seed), 32
    x = np.random.default_rng(seed).normal(size=(n, 1))
    nodes = purses(x)
    for number in range(60):
        for seat, purse in nodes.items():
            receiver = draw.choice([other for other in range(n) if other != seat])
            purse.split(number, [receiver])
            if draw.random() >= 0.2:
                nodes[receiver].take(seat, purse.due(receiver))
                purse.acknowledge(receiver)
            elif reabsorb:
                purse.take_back(receiver)
            else:
                purse.outgoing.clear()
        for purse in nodes.values():
            purse.merge()
    return whole(nodes)[0], float(np.abs(estimates(nodes) - x.mean()).max())


def test_taking_lost_shares_back_keeps_the_mass_that_leaks_away_otherwise():
    """Half of a mass is cut off in each round, so 0.9 ** 60 of it remains of 32 at a loss of 20 %, on average: 0.06."""
    kept, leaked = [lossy(True, seed) for seed in range(3)], [lossy(False, seed) for seed in range(3)]
    assert [mass for mass, _ in kept] == pytest.approx([32] * 3, abs=1e-12)
    assert max(error for _, error in kept) < 5e-5
    assert all(0.02 < mass < 0.2 for mass, _ in leaked)
    assert np.mean([error for _, error in leaked]) > 100 * max(error for _, error in kept)


# -- whatever is lost, comes twice, or late ----------------------------------------------------------------------------

N = 4
seats = st.integers(0, N - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("split"), seats, st.sets(seats, max_size=N)),
        st.tuples(st.just("offer"), seats, st.integers(0, 9)),  # and the acknowledgement arrives
        st.tuples(st.just("lose"), seats, st.integers(0, 9)),  # the receiver has it, and the acknowledgement is lost
        st.tuples(st.just("again"), seats, st.integers(0, 99)),  # an old copy of a share of this node arrives
        st.tuples(st.just("move"), seats, st.integers(-3, 3)),
        st.tuples(st.just("merge"), seats, st.integers(0, 30)),
        st.tuples(st.just("leave"), seats, seats),
        st.tuples(st.just("restore"), seats, seats),
    ),
    min_size=10,
    max_size=60,
)


class Nodes:
    """Nodes that do what they are told, and a wire that keeps a copy of all that was ever offered."""

    def __init__(self):
        self.purses = purses(X[:N])
        self.copies = {seat: [] for seat in range(N)}
        self.left = set()
        self.learned = np.zeros(3)

    def act(self, number, action, seat, other):
        getattr(self, action)(number, seat, other)

    def split(self, number, seat, receivers):
        self.purses[seat].split(number, sorted(receivers - {seat}))

    def offer(self, number, seat, index):
        for receiver in self.owed(seat, index):
            share = self.purses[seat].due(receiver)
            self._arrive(seat, receiver, share)
            if receiver in self.left and self.purses[receiver].seen.get(seat, -1) < share.round:
                self.purses[seat].take_back(receiver)
            else:
                self.purses[seat].acknowledge(receiver)

    def lose(self, number, seat, index):
        for receiver in self.owed(seat, index):
            self._arrive(seat, receiver, self.purses[seat].due(receiver))

    def owed(self, seat, index):
        """One of those who have not answered, if there are any."""
        receivers = sorted(self.purses[seat].outgoing)
        return receivers[index % len(receivers) :][:1] if receivers else []

    def again(self, number, seat, index):
        if self.copies[seat]:
            self._arrive(seat, *self.copies[seat][index % len(self.copies[seat])])

    def move(self, number, seat, step):
        self.purses[seat].move(torch.full((3,), float(step), dtype=torch.float64))
        self.learned += step

    def merge(self, number, seat, until):
        self.purses[seat].merge(until)

    def leave(self, number, seat, receiver):
        if seat != receiver and seat not in self.left:
            self.purses[seat].hand_over(number, receiver)
            self.left.add(seat)

    def restore(self, number, seat, other):
        self.purses[seat] = Purse.restored(self.purses[seat].state())

    def _arrive(self, seat, receiver, share):
        self.copies[seat].append((receiver, share))
        if receiver not in self.left:
            self.purses[receiver].take(seat, share)


@settings(max_examples=150, deadline=None)
@given(actions)
def test_mass_is_kept_whatever_is_lost_and_comes_again(actions):
    nodes = Nodes()
    for number, action in enumerate(actions):
        nodes.act(number, *action)
        weight, value = whole(nodes.purses)
        assert weight == pytest.approx(N, abs=1e-12)
        np.testing.assert_allclose(value, X[:N].sum(0) + nodes.learned, atol=1e-11)
        assert all(abs(purse.unexplained) < 1e-12 for purse in nodes.purses.values())


# -- the book ----------------------------------------------------------------------------------------------------------


def test_the_ledger_says_where_the_mass_went():
    ann, bob = purses([[1.0], [2.0]]).values()
    ann.split(0, [1, 2, 3])
    assert ann.weight == 0.25 and ann.under_way == 0.75
    assert bob.take(0, ann.due(1))
    ann.acknowledge(1)
    ann.take_back(2)
    assert ann.ledger == Ledger(born=1, sent=0.25, returned=0.25) and ann.under_way == 0.25
    assert bob.ledger == Ledger(born=1, taken=0.25) and bob.weight == 1
    bob.merge()
    assert bob.weight == 1.25 and bob.value == 2.25
    bob.forfeit(1.0, torch.tensor([2.0], dtype=torch.float64))
    assert bob.weight == bob.value == 0.25 and bob.ledger.forfeited == 1
    assert ann.unexplained == bob.unexplained == 0
    assert whole({0: ann, 1: bob})[0] == 1


def test_shares_wait_for_their_round_and_are_added_in_order_of_rounds_and_seats():
    (purse,) = purses([[0.0]]).values()
    one = torch.tensor([1.0], dtype=torch.float64)
    taken = [purse.take(sender, Share(number, 0.5, one)) for number, sender in ((1, 2), (0, 3), (1, 1), (0, 1))]
    assert taken == [True, True, True, False], "what a sender cut off earlier was taken before"
    assert list(purse.merge(0)) == [3] and purse.weight == 1.5
    assert list(purse.merge()) == [1, 2] and purse.weight == 2.5
    assert purse.merge() == {}


def test_a_vector_that_was_handed_on_is_not_written_to():
    start = torch.ones(2)
    purse = Purse(start)
    purse.split(0, [1])
    sent = purse.due(1).value
    purse.move(torch.ones(2))
    purse.take(1, Share(0, 1.0, torch.ones(2)))
    purse.merge()
    purse.take_back(1)
    assert torch.equal(start, torch.ones(2)) and torch.equal(sent, torch.full((2,), 0.5))


def test_a_state_holds_all_of_it():
    first = purses([[1.0, 2.0]])[0]
    first.split(0, [1, 2])
    first.split(1, [1])
    first.take(3, Share(7, 0.5, torch.ones(2, dtype=torch.float64)))
    state = first.state()
    again = Purse.restored(state)
    assert state.keys() == again.state().keys()
    for name, value in again.state().items():
        assert torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else value == state[name]
    assert [share.round for share in again.outgoing[1]] == [0, 1] and again.seen == {3: 7}


def test_what_is_under_way_to_somebody_who_is_gone_is_there_and_what_he_had_is_missing():
    nodes = purses(X[:3])
    exchange(nodes, 0, build("full", 3))
    nodes[0].split(1, [1, 2])
    gone = nodes.pop(2)
    assert whole(nodes)[0] == pytest.approx(3 - gone.weight)
