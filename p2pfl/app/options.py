"""Command lines made from dataclasses: every field is an option, every mistake one sentence."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from p2pfl.app.config import load_config, with_topology
from p2pfl.errors import ConfigError

__all__ = ["parse", "parse_options"]


def parse(options: Any, arguments: list[str], program: str, default: Any = None) -> Any:
    """An instance of the dataclass `options`. Raises ConfigError for what it does not take, SystemExit after --help."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(options, prog=program, args=arguments, default=default)
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_sentence(said.getvalue(), program)) from None


def parse_options(options: Any, arguments: list[str], program: str) -> Any:
    """Options of the generic dataclass `options`, whose field `config` has the course file's values for defaults.

    Raises ConfigError for a missing file or an unknown option, SystemExit after --help.
    """
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            raise ConfigError(f"give a course file first, to see its options: {program} examples/digits.toml --help")
        raise ConfigError(f"a course file is missing: {program} examples/digits.toml")
    config = load_config(Path(arguments[0]))
    kind = options[type(config.course)]
    parsed = parse(kind, arguments[1:], f"{program} {arguments[0]}", options(config=config))
    return replace(parsed, config=with_topology(parsed.config))


def _sentence(box: str, program: str) -> str:
    """The gist of the box that tyro draws around a mistake, in one line: what is wrong, and the nearest option."""
    inner = [line.strip("│| ") for line in box.splitlines()[1:-1]]
    rulers = [place for place, line in enumerate(inner) if line and not line.strip("─-")]
    wrong = " ".join(inner[: rulers[0]] if rulers else inner) or " ".join(box.split())
    nearest = re.search(r"Perhaps you meant:.*?(--[a-z][\w.-]*)", " ".join(inner))
    mend = f"did you mean {nearest[1]}?" if nearest else f"see {program} --help"
    return f"{wrong[:1].lower()}{wrong[1:].rstrip('.')}; {mend}"
