"""Charts, as the XML that they are."""

from __future__ import annotations

import doctest
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.app import plots
from p2pfl.app.plots import Line, chart, key, ticks


def test_examples() -> None:
    assert doctest.testmod(plots).failed == 0


finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


@given(finite, finite)
def test_ticks_hold_all_and_are_few(a: float, b: float) -> None:
    least, most = min(a, b), max(a, b)
    found = ticks(least, most)
    assert found[0] <= least and found[-1] >= most and 2 <= len(found) <= 8
    assert found == sorted(set(found))


def paths(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    drawn = [path.attrib["d"].removeprefix("M").split(" L") for path in root.iter("path")]
    return [[(float(x), float(y)) for x, y in (point.split() for point in one)] for one in drawn]


def test_a_chart_is_to_scale() -> None:
    (line,) = paths(chart("accuracy", "round", [Line("a", [(0, 0.0), (5, 0.5), (10, 1.0)], 0)]))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1) and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2 and y0 > y2, "up is more"


def test_names_cannot_break_out_and_who_cannot_see_is_told_the_end() -> None:
    svg = chart('<"&', "round", [Line('"><script>', [(1, 0.5), (2, 0.75)], 3)])
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'Line chart of <"& by round: "><script> ends at 0.75.'
    assert root.attrib["role"] == "img" and not list(root.iter("script"))


def test_what_is_not_finite_is_left_out_and_long_lines_are_thinned() -> None:
    (line,) = paths(chart("loss", "round", [Line("a", [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)], 0)]))
    assert len(line) == 2
    (line,) = paths(chart("loss", "round", [Line("a", [(float(x), float(x)) for x in range(10_001)], 0)]))
    assert 400 <= len(line) <= 420
    with pytest.raises(ValueError, match="a chart needs points"):
        chart("loss", "round", [Line("a", [(1, math.nan)], 0)])


def test_runs_look_different() -> None:
    assert len({key(place) for place in range(32)}) == 32
