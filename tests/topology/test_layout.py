import numpy as np
import pytest

from p2pfl.topology import Topology, build
from p2pfl.topology.layout import layout


@pytest.mark.parametrize(
    "family", ["ring", "star", "torus", "grid", "hypercube", "tree", "hierarchy", "clustered", "regular", "exponential"]
)
def test_seats_are_apart_and_within_the_unit_circle(family: str) -> None:
    points = layout(build(family, 16).union)
    assert points.shape == (16, 2)
    radii = np.sqrt((points**2).sum(1))
    assert radii.max() == pytest.approx(1)
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2)) + 9 * np.eye(16)
    assert apart.min() > 0.08
    assert np.array_equal(points, layout(build(family, 16).union))


def test_a_hub_is_in_the_middle_and_a_chain_is_a_line() -> None:
    spokes = layout(build("star", 9).union)
    assert np.allclose(np.sqrt(((spokes[1:] - spokes[0]) ** 2).sum(1)), np.sqrt(((spokes[1] - spokes[0]) ** 2).sum()))
    line = layout(build("chain", 5).union)
    assert np.allclose(line[:, 1], 0) and np.allclose(np.diff(line[:, 0]), 0.5)


def test_grids_are_rectangles() -> None:
    points = layout(build("grid", 12).union)
    assert len(np.unique(points[:, 0].round(6))) == 4
    assert len(np.unique(points[:, 1].round(6))) == 3


def test_neighbors_lie_nearer_than_strangers() -> None:
    found = build("clustered", 20).union
    points = layout(found)
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    linked = np.zeros((20, 20), dtype=bool)
    for a, b in found.edges:
        linked[a, b] = linked[b, a] = True
    assert apart[linked].mean() < 0.5 * apart[~linked & ~np.eye(20, dtype=bool)].mean()


def test_odd_cases() -> None:
    assert layout(Topology.from_edges(1, [])).tolist() == [[0.0, 0.0]]
    parts = layout(Topology.from_edges(12, [(i, i + 1) for i in range(11) if i != 5]))
    assert np.isfinite(parts).all()
