"""Exit codes: as documented, and as errors lead to them."""

from __future__ import annotations

import os
import re
import signal

import pytest

from p2pfl.app.exits import EXIT_CODES, Exit, exit_of
from p2pfl.errors import (
    ComputeError,
    ConfigError,
    CourseError,
    IdentityError,
    LinkRefused,
    ListenFailed,
    PeersLost,
    PrivacySpent,
)


def test_the_documentation_lists_them_all() -> None:
    assert [int(number) for number in re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)] == list(Exit)


def test_numbers_are_those_of_the_system() -> None:
    assert Exit.GAVE_UP == os.EX_TEMPFAIL
    assert Exit.INTERRUPTED == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), Exit.MISTAKE),
        (IdentityError("x"), Exit.MISTAKE),
        (ListenFailed("x"), Exit.MISTAKE),
        (LinkRefused("x"), Exit.FAILED),
        (CourseError("x"), Exit.FAILED),
        (PeersLost("x"), Exit.GAVE_UP),
        (PrivacySpent("x"), Exit.MISTAKE),
        (ComputeError("x"), Exit.FAILED),
    ],
)
def test_who_is_to_blame_decides(error, code) -> None:
    assert exit_of(error) is code
