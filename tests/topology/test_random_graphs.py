import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.topology import build
from p2pfl.topology.random_graphs import barabasi_albert, erdos_renyi, regular, watts_strogatz

RANDOM = ["regular", "erdos-renyi", "watts-strogatz", "barabasi-albert", "epidemic-oracle", "epidemic-local", "matcha",
          "random-matching"]  # fmt: skip


@settings(max_examples=30)
@given(st.integers(6, 40).map(lambda half: 2 * half), st.integers(3, 9), st.integers(0, 5))
def test_regular_graphs_are(n: int, degree: int, seed: int) -> None:
    found = regular(n, degree, seed)
    assert found.is_connected and {len(others) for others in found.adjacency} == {degree}


@settings(max_examples=30)
@given(st.integers(8, 60), st.integers(0, 5))
def test_all_are_connected_with_the_edges_they_promise(n: int, seed: int) -> None:
    assert erdos_renyi(n, seed=seed).is_connected
    small = watts_strogatz(n, 4, 0.3, seed)
    assert small.is_connected and len(small.edges) == 2 * n
    scale_free = barabasi_albert(n, 2, seed)
    assert scale_free.is_connected and len(scale_free.edges) == 2 * (n - 2)


def test_erdos_renyi_has_the_density_asked_for() -> None:
    found = erdos_renyi(200, probability=0.1)
    assert 0.09 < len(found.edges) / (200 * 199 / 2) < 0.11


def test_other_seeds_are_other_graphs() -> None:
    assert len({regular(20, 4, seed).fingerprint for seed in range(10)}) == 10


def test_seeds_mean_the_same_in_every_process() -> None:
    code = (
        f"from p2pfl.topology import build\nprint([[build(f, 20).at(t).fingerprint for t in (0, 3)] for f in {RANDOM}])"
    )
    here = str([[build(family, 20).at(t).fingerprint for t in (0, 3)] for family in RANDOM])
    for salt in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": salt}
        )
        assert done.stdout.strip() == here


def test_unconnectable_graphs_are_given_up_with_a_mend() -> None:
    with pytest.raises(
        ConfigError, match=r"no connected graph in 100 draws.*raise probability = 0.01 above ln\(n\) / n = 0.078"
    ):
        erdos_renyi(50, probability=0.01)
    with pytest.raises(ConfigError, match="choose degree >= 3"):
        regular(20, degree=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: regular(5, 3), "n \\* degree is even"),
        (lambda: erdos_renyi(5, probability=1.5), "probability = 1.5"),
        (lambda: watts_strogatz(9, 3), "choose an even degree"),
        (lambda: watts_strogatz(9, 4, 2.0), "rewire = 2.0"),
        (lambda: barabasi_albert(3, 3), "attach = 3"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]  # a lambda of the table above
