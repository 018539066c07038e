"""A module that a user names, by its path or its dotted name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from p2pfl.errors import ConfigError

__all__ = ["load_module"]


def load_module(path_or_name: str, prefix: str) -> ModuleType:
    """Import `path/to/file.py` or `package.module`. Raises ConfigError where there is none, and what it raises itself.

    A file is known as `prefix` and its stem: it may be called as some module that is in use.
    """
    path = Path(path_or_name)
    if path.suffix != ".py":
        try:
            return importlib.import_module(path_or_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path_or_name}.".startswith(f"{error.name}."):
                raise  # a module that this one needs; not the user's word
            raise ConfigError(
                f"there is no module {path_or_name!r}; give a path that ends in .py, or install it"
            ) from error
    name = prefix + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path} is not a file; give the path of a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up the types of their fields
    spec.loader.exec_module(module)
    return module
