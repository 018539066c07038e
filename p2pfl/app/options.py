"""Command lines made from dataclasses: every field is an option, every mistake one sentence."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tyro

from p2pfl.errors import ConfigError

__all__ = ["parse", "parse_options"]


def parse(options: Any, arguments: list[str], program: str, default: Any = None) -> Any:
    """An instance of the dataclass `options`. Raises ConfigError for what it does not take, SystemExit after --help."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(options, prog=program, args=_spelt_out(arguments), default=default)
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_sentence(said.getvalue(), program)) from None


def parse_options(options: Any, arguments: list[str], program: str) -> Any:
    """Options of the generic dataclass `options`, whose field `config` has the course file's values for defaults.

    Raises ConfigError for a missing file or an unknown option, SystemExit after --help.
    """
    from p2pfl.app.config import load_config, with_topology  # noqa: PLC0415 - loads torch, which `parse` does not need

    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            raise ConfigError(f"give a course file first, to see its options: {program} examples/digits.toml --help")
        raise ConfigError(f"a course file is missing: {program} examples/digits.toml")
    config = load_config(Path(arguments[0]))
    kind = options[type(config.course)]
    parsed = parse(kind, arguments[1:], f"{program} {arguments[0]}", options(config=config))
    return replace(parsed, config=with_topology(parsed.config))


def _sentence(said: str, program: str) -> str:
    """The gist of what tyro says about a mistake, in one line: what is wrong, and the nearest option.

    It draws a box in which rulers part the blocks; where stdout is no UTF-8, the box is only a ruler below its title.
    """
    lines = [line.strip("│ ") for line in said.splitlines() if line[:1] not in ("╭", "╰")]
    blocks = [block.split() for block in re.split(r"^[─-]{3,}$", "\n".join(lines), flags=re.MULTILINE)]
    wrong = " ".join(blocks[0] if said.startswith("╭") or len(blocks) == 1 else blocks[1])
    meant = re.findall(r"--[a-z][\w.-]*", " ".join(lines).partition("Perhaps you meant")[2])
    given = re.search(r"--[\w.-]+", wrong)
    nearest = get_close_matches(given[0], meant, 1, 0.0) if given else []
    mend = f"did you mean {nearest[0]}?" if nearest else f"see {program} --help"
    return f"{wrong[:1].lower()}{wrong[1:].rstrip('.')}; {mend}"


def _spelt_out(arguments: list[str]) -> list[str]:
    """A command line with `--compute NAME` as `--compute.name NAME`.

    >>> _spelt_out(["--compute", "ray", "--compute.workers=2"])
    ['--compute.name', 'ray', '--compute.workers=2']
    """
    short = {"--compute": "--compute.name"}
    return [
        f"--compute.name={each.removeprefix('--compute=')}" if each.startswith("--compute=") else short.get(each, each)
        for each in arguments
    ]
