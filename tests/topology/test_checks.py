import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology.checks import refuse_unknown, typed, unknown


def test_unknown_names_get_the_nearest_or_the_choice() -> None:
    assert str(unknown("family", "rnig", ["ring", "star"])) == "family 'rnig' is unknown: did you mean 'ring'?"
    assert str(unknown("family", "zzz", ["star", "ring"])) == "family 'zzz' is unknown: choose one of ring, star"
    assert str(unknown("key", "seed", [])) == "key 'seed' is unknown: leave it out"
    refuse_unknown("key", ["a"], ["a", "b"])
    with pytest.raises(ConfigError, match="key 'c' is unknown"):
        refuse_unknown("key", ["a", "c"], ["a", "b"])


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("4", int, "x: n = '4' has the wrong type: give an integer"),
        (True, int, "x: n = True has the wrong type: give an integer"),
        ("a", float, "give a number"),
        (1, bool, "give true or false"),
        (1, str | None, "give a string"),
        (1, str | dict[str, int], "give a string or a table"),
        ([1], list[tuple[int, int]], "give a list of pairs of seats"),
        ([["a"]], list[list[float]], "give a list, each entry a list, each entry a number"),
        ("a" * 90, int, r"n = 'a{36}\.\.\. has"),
    ],
)
def test_wrong_types_are_named(value: object, kind: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        typed("x", "n", value, kind)


def test_right_types_pass() -> None:
    assert typed("x", "n", [[0, 1]], list[tuple[int, int]]) == [(0, 1)]
    assert typed("x", "n", 1, float) == 1.0
