"""Command lines that begin with a course file, whose every field is an option."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from p2pfl.app.config import load_config, with_topology
from p2pfl.errors import ConfigError

__all__ = ["parse_options"]


def parse_options(options: Any, arguments: list[str], program: str) -> Any:
    """Options of the generic dataclass `options`, whose field `config` has the course file's values for defaults.

    Raises ConfigError for a missing file, SystemExit after --help or for an unknown option.
    """
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            raise ConfigError(f"give a course file first, to see its options: {program} examples/digits.toml --help")
        raise ConfigError(f"a course file is missing: {program} examples/digits.toml")
    config = load_config(Path(arguments[0]))
    kind = options[type(config.course)]
    default = options(config=config)
    parsed = tyro.cli(kind, prog=f"{program} {arguments[0]}", args=arguments[1:], default=default)
    return replace(parsed, config=with_topology(parsed.config))
