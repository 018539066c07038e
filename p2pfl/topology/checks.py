"""Sentences for what is wrong with a name or a value that the user wrote into a topology."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args, get_origin

import msgspec

from p2pfl.errors import ConfigError

__all__ = ["refuse_unknown", "typed", "unknown"]


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is none of `known`, with the nearest of them if one is near.

    >>> unknown("family", "rnig", ["ring", "star"])
    ConfigError("family 'rnig' is unknown: did you mean 'ring'?")
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    mend = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}" if names else "leave it out"
    return ConfigError(f"{what} {name!r} is unknown: {mend}")


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for the first name in `given` that is not in `known`."""
    allowed = list(known)
    for name in given:
        if name not in allowed:
            raise unknown(what, name, allowed)


def typed(where: str, field: str, value: object, kind: Any) -> Any:
    """Give `value` as `kind`, or raise ConfigError naming `field`. Lists stand for tuples, integers for floats."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
        raise ConfigError(f"{where}: {field} = {shown} has the wrong type: give {_words(kind)}") from error


_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a table"}


def _words(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) in (list, tuple):
        inner = get_args(kind)[0]
        return "a list of pairs of seats" if get_origin(inner) is tuple else f"a list, each entry {_words(inner)}"
    if get_origin(kind) is dict:
        return "a table"
    return " or ".join(_words(part) for part in get_args(kind) if part is not type(None))
