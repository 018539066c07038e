"""Names and options of where training runs, and what they make."""

from __future__ import annotations

import pytest

from p2pfl.app.computes import COMPUTES, ComputeOptions, make_compute
from p2pfl.compute.cohort import Cohort
from p2pfl.compute.threads import Threads
from p2pfl.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "made"),
    [
        (ComputeOptions(), "<Cohort>"),
        (ComputeOptions("inline"), "<Inline>"),
        (ComputeOptions("cohort"), "<Cohort>"),
        (ComputeOptions("threads"), "<Threads 1>"),
        (ComputeOptions("threads", workers=3), "<Threads 3>"),
        (ComputeOptions("processes", workers=2), "<Processes 2>"),
    ],
)
async def test_names_and_what_they_make(options, made):
    compute = make_compute(options, auto="cohort")
    assert repr(compute) == made
    await compute.close()


async def test_auto_is_what_the_place_calls_for():
    assert isinstance(make_compute(ComputeOptions(), auto="cohort"), Cohort)
    threads = make_compute(ComputeOptions(), auto="threads")
    assert isinstance(threads, Threads)
    await threads.close()


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(ConfigError, match="--compute 'cohrt' is unknown; did you mean 'cohort'"):
        make_compute(ComputeOptions("cohrt"), auto="cohort")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"workers": -1}, r"--compute\.workers is -1"),
        ({"name": "inline", "workers": 2}, r"--compute\.workers is for threads, processes and ray, not inline"),
        ({"name": "processes", "address": "auto"}, r"--compute\.address is for ray, not processes"),
    ],
)
def test_options_that_do_not_go_together(given, field):
    with pytest.raises(ConfigError, match=field):
        ComputeOptions(**given)


def test_every_compute_has_a_name():
    assert set(COMPUTES) == {"inline", "cohort", "threads", "processes", "ray"}
