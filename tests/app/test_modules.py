"""Modules that a user names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from p2pfl.app.modules import load_module
from p2pfl.errors import ConfigError


def test_a_file_is_loaded_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text("found = 7\n")
    module = load_module(str(path), "tried.")
    assert module.found == 7 and module.__name__ == "tried.json" and sys.modules["tried.json"] is module
    del sys.modules["tried.json"]


def test_a_dotted_name_is_imported() -> None:
    assert load_module("p2pfl.errors", "tried.") is sys.modules["p2pfl.errors"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.py", "none.py is not a file; give the path of a Python module"),
        ("no.such.module", "there is no module 'no.such.module'; give a path that ends in .py, or install it"),
        ("p2pfl.nothing", "there is no module 'p2pfl.nothing'"),
    ],
)
def test_what_is_no_module_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_module(name, "tried.")


def test_what_a_module_lacks_itself_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        load_module("needy", "tried.")
