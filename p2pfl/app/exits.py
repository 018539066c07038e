"""Exit codes of the commands: what a service manager, a container or a script goes by."""

from __future__ import annotations

from enum import IntEnum

from p2pfl.errors import ListenFailed, P2pflError, PeersLost, PrivacySpent, UserError

__all__ = ["EXIT_CODES", "Exit", "exit_of"]

EXIT_CODES = """\
exit codes:
    0   done, or stopped as asked
    1   failed
    2   a mistake in what was given: starting it again will not help
   75   gave up waiting for peers; the state is saved, so start it again
  130   interrupted a second time, and ended at once"""


class Exit(IntEnum):
    """How a command has ended. The numbers are those of sysexits.h and of shells."""

    DONE = 0
    FAILED = 1
    MISTAKE = 2
    GAVE_UP = 75  # EX_TEMPFAIL
    INTERRUPTED = 130  # 128 + SIGINT


def exit_of(error: P2pflError) -> Exit:
    """What an error that ends a command means for who called it."""
    if isinstance(error, PeersLost):
        return Exit.GAVE_UP
    return Exit.MISTAKE if isinstance(error, (UserError, ListenFailed, PrivacySpent)) else Exit.FAILED
