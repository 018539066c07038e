import pytest

from p2pfl.errors import ConfigError
from p2pfl.learn.nodes import NodeSpec, TrainSpecs
from p2pfl.learn.specs import TrainSpec

GENERAL = TrainSpec(epochs=5, lr=0.3)
GROUPS = {"slow": (7, 9)}


def specs(**epochs: int) -> TrainSpecs:
    return TrainSpecs.of(GENERAL, {name: NodeSpec({"epochs": few}) for name, few in epochs.items()}, GROUPS)


def test_seats_ranges_and_groups() -> None:
    found = specs(**{"1": 1, "2-3, 5": 2, "slow": 3})
    assert [found[seat].epochs for seat in range(10)] == [5, 1, 2, 2, 5, 2, 5, 3, 5, 3]
    assert found[9] == TrainSpec(epochs=3, lr=0.3) and found[8] is GENERAL
    assert [spec.epochs for spec in found.different] == [5, 1, 2, 3]


def test_clients_with_one_table_share_one_spec() -> None:
    found = specs(**{"1-1000000": 2})
    assert found[1] is found[999_999]


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"slwo": 1}, "nodes.slwo names no seats; write a seat, as in "),
        ({"4-2": 1}, "nodes.4-2 names no seats"),
        ({"1,,2": 1}, "nodes.1,,2 names no seats"),
        ({"": 1}, "nodes. names no seats"),
        ({"1-4": 1, "2,3": 1}, "nodes.1-4 and nodes.2,3 both have seat 2; leave one out"),
        ({"1-9": 1, "slow": 1}, "nodes.1-9 and nodes.slow both have seat 7"),
    ],
)
def test_mistakes(tables: dict[str, int], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs(**tables)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("holders", [range(1, 9), [1, 2, 7]])
def test_only_who_holds_examples_trains(holders: range | list[int]) -> None:
    specs(**{"1-2": 1}).check(holders)
    with pytest.raises(ConfigError, match=r"nodes\.slow has seat 9, which holds no examples; leave it out"):
        specs(slow=1).check(holders)
