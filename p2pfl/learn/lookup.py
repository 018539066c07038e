"""From names in a course file to objects: the user's own code by import path, and a hint for a misspelt name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from p2pfl.errors import ConfigError

__all__ = ["load_callable", "taken", "unknown"]


def unknown(field: str, name: str, choices: Iterable[str]) -> ConfigError:
    """The error for a name that is none of `choices`, with the nearest of them."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    mend = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(known)}"
    return ConfigError(f"{field} {name!r} is unknown; {mend}")


def load_callable(field: str, path: str) -> Callable[..., Any]:
    """What `package.module:name` or `./file.py:name` stands for. Runs the user's module, as any import does.

    Raises ConfigError if there is no such file, module or name, or if it cannot be called.
    """
    where, _, name = path.rpartition(":")
    module = _load_file(field, Path(where)) if where.endswith(".py") else _load_module(field, where)
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(
            f"{field} {path!r}: {where} has no class or function {name!r}; check the part after the colon"
        )
    return found  # type: ignore[no-any-return]  # what a user's module holds has no type that we could know


def taken(what: str, function: Callable[..., Any], offered: Collection[str]) -> tuple[str, ...]:
    """Which of `offered` a function of the user's own has parameters for, by name.

    Raises ConfigError, about `what`, if it needs anything else.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise ConfigError(f"{what} is a built-in; it must be a function of your own") from error
    for parameter in parameters:
        known = parameter.name in offered and parameter.kind is not parameter.POSITIONAL_ONLY
        if not known and parameter.default is parameter.empty:
            raise ConfigError(
                f"{what} takes {str(parameter)!r}, which it is not given; it can have {', '.join(offered)}"
            )
    return tuple(parameter.name for parameter in parameters if parameter.name in offered)


def _load_module(field: str, dotted: str) -> ModuleType:
    try:
        return importlib.import_module(dotted)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{field}: module {dotted!r} cannot be imported ({error}); install it, or give its file as ./file.py:Name"
        ) from error


def _load_file(field: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{field}: there is no file {path}; the path is relative to {Path.cwd()}")
    name = f"p2pfl_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{field}: {path} cannot be imported; give a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their own module up while it runs
    spec.loader.exec_module(module)
    return module
