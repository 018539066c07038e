import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.topology import fixed, weights
from p2pfl.topology.varying import base_graph

degrees = st.dictionaries(st.integers(0, 99), st.integers(1, 50), max_size=12)


def test_metropolis_takes_the_larger_degree() -> None:
    assert weights.metropolis_weights(3, {"a": 1, "b": 9}) == {"a": 0.25, "b": 0.1}
    assert weights.metropolis_weights(3, {"a": 1, "b": 9}, lazy=True) == {"a": 0.125, "b": 0.05}


@given(degrees)
def test_own_share_stays_positive(found: dict[int, int]) -> None:
    assert weights.own_weight(weights.metropolis_weights(len(found), found)) > 0
    assert weights.own_weight(weights.metropolis_weights(len(found), found, lazy=True)) >= 0.5
    assert weights.own_weight(weights.uniform_weights(found)) == pytest.approx(1 / (1 + len(found)))


@given(degrees, st.data())
def test_rows_sum_to_one_whoever_is_missing(found: dict[int, int], data: st.DataObject) -> None:
    row = weights.metropolis_weights(len(found), found)
    heard = data.draw(st.sets(st.sampled_from(sorted(found)))) if found else set()
    for rule in ("self", "renormalise"):
        kept = weights.received_weights(row, heard, rule)
        assert set(kept) == heard
        own = weights.own_weight(kept)
        assert 0 < own <= 1
        assert own + sum(kept.values()) == pytest.approx(1)
    assert weights.received_weights(row, heard) == {other: row[other] for other in heard}


@given(degrees, st.data())
def test_renormalising_keeps_proportions(found: dict[int, int], data: st.DataObject) -> None:
    row = weights.metropolis_weights(len(found), found)
    heard = data.draw(st.sets(st.sampled_from(sorted(found)))) if found else set()
    kept = weights.received_weights(row, heard, "renormalise")
    for other in heard:
        assert kept[other] / weights.own_weight(kept) == pytest.approx(row[other] / weights.own_weight(row))


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 100), st.floats(0.1, 100))
def test_target_weights_are_in_detailed_balance(here: int, there: int, mine: float, theirs: float) -> None:
    out = weights.target_weights(here, mine, {"x": (there, theirs)})["x"]
    back = weights.target_weights(there, theirs, {"x": (here, mine)})["x"]
    assert mine * out == pytest.approx(theirs * back)


def test_equal_masses_give_metropolis() -> None:
    assert weights.target_weights(3, 5, {"a": (1, 5), "b": (9, 5)}) == weights.metropolis_weights(3, {"a": 1, "b": 9})


def test_push_sum_shares_sum_to_one_at_the_sender() -> None:
    assert weights.push_sum_share(3) * (3 + 1) == 1


def test_topology_rows() -> None:
    assert weights.topology_weights(fixed.star(4), 1) == {0: 0.25}
    assert weights.topology_weights(fixed.exponential(4), 0) == {2: 1 / 3, 3: 1 / 3}  # its senders
    prescribed = base_graph(5).at(2)
    assert weights.topology_weights(prescribed, 4) == {0: 0.8}
