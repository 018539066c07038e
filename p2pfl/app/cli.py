"""The command `p2pfl`. Each subcommand loads only what it needs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from p2pfl.app.exits import EXIT_CODES, Exit, exit_of
from p2pfl.errors import P2pflError, UserError

__all__ = ["main", "run"]

USAGE = f"""\
usage: p2pfl COMMAND ...

  simulate COURSE.toml [OPTIONS]   run a course in one process, on virtual time
  node [OPTIONS]                   run a node on this host (as python -m p2pfl.node)
  client --peers ADDRESS --fit F   take part by a training function over numpy arrays, without torch
  report RUN ...                   compare runs: a table, or a page with charts
  check COURSE.toml | MODULE       verify the message flow of a course, and draw it
  doctor --peers ADDRESS ...       test the links to other nodes, with advice
  fuzz COURSE.toml | MODULE        run a course under many seeds, each with faults of its own, and check it
  topology show FILE [--to PICTURE]  table, spectral gap and drawing of a topology
  topology list                    the topologies and families that are shipped
  data show COURSE.toml [--to PICTURE]  how the data are dealt to the clients
  key FILE                         make a network key
  id FILE                          the peer id of an identity file, which is made if it is not there

p2pfl COMMAND --help tells more.

{EXIT_CODES}"""


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """The whole process: a command line, and the end.

    A thread may still compute an update that nobody waits for any more. An interpreter that takes itself apart
    meanwhile is aborted by torch, so then it is left as it is.
    """
    code = main(arguments)
    if any(thread.daemon for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code, see Exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given else ("--help", [])
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE + "\n")
        return Exit.DONE
    command = COMMANDS.get(name)
    try:
        if command is None:
            raise UserError(f"there is no command {name!r}; p2pfl --help lists them")
        return command(rest)
    except P2pflError as error:
        code = exit_of(error)
        sys.stderr.write(f"{'error' if code is Exit.MISTAKE else 'failed'}: {error}\n")
        return code
    except SystemExit as end:
        if not end.code:  # after --help
            sys.stdout.write(f"\n{EXIT_CODES}\n")
        raise
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # who read our output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would flush in vain at exit
        return Exit.FAILED


def _simulate(arguments: list[str]) -> int:
    from p2pfl.app.simulate import simulate_command  # noqa: PLC0415 - loads torch

    return simulate_command(arguments)


def _node(arguments: list[str]) -> int:
    from p2pfl.app.host import run_host  # noqa: PLC0415 - loads torch

    return run_host(arguments)


def _client(arguments: list[str]) -> int:
    from p2pfl.app.client import client_command  # noqa: PLC0415 - loads aiohttp and numpy

    return client_command(arguments)


def _report(arguments: list[str]) -> int:
    from p2pfl.app.report import report_command  # noqa: PLC0415 - loads rich

    return report_command(arguments)


def _check(arguments: list[str]) -> int:
    from p2pfl.app.preview import check_command  # noqa: PLC0415 - loads torch

    return check_command(arguments)


def _doctor(arguments: list[str]) -> int:
    from p2pfl.doctor.doctor import doctor_command  # noqa: PLC0415 - loads aiohttp

    return doctor_command(arguments)


def _fuzz(arguments: list[str]) -> int:
    from p2pfl.app.fuzz import fuzz_command  # noqa: PLC0415 - loads torch

    return fuzz_command(arguments)


def _topology(arguments: list[str]) -> int:
    from p2pfl.app.graphs import topology_command  # noqa: PLC0415 - loads networkx

    return topology_command(arguments)


def _data(arguments: list[str]) -> int:
    from p2pfl.app.preview import data_command  # noqa: PLC0415 - loads torch

    return data_command(arguments)


def _key(arguments: list[str]) -> int:
    from p2pfl.app.keys import key_command  # noqa: PLC0415 - loads nacl

    return key_command(arguments)


def _identity(arguments: list[str]) -> int:
    from p2pfl.app.keys import id_command  # noqa: PLC0415 - loads nacl

    return id_command(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "simulate": _simulate,
    "node": _node,
    "client": _client,
    "report": _report,
    "check": _check,
    "doctor": _doctor,
    "fuzz": _fuzz,
    "topology": _topology,
    "data": _data,
    "key": _key,
    "id": _identity,
}
