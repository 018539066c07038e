"""Import paths and hints."""

import math
from pathlib import Path

import pytest

from p2pfl.errors import ConfigError
from p2pfl.learn.lookup import load_callable, unknown


def test_modules_and_files(tmp_path: Path) -> None:
    assert load_callable("model.name", "math:sqrt") is math.sqrt
    path = tmp_path / "net.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Net: a: int = 3\n"
    )
    assert load_callable("model.name", f"{path}:Net")().a == 3


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module_anywhere:Net", "module 'no_such_module_anywhere' cannot be imported"),
        ("math:sqroot", "math has no class or function 'sqroot'"),
        ("math:pi", "math has no class or function 'pi'"),
        ("./nowhere.py:Net", "there is no file nowhere.py"),
        (":Net", "cannot be imported"),
    ],
)
def test_mistakes(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_callable("model.name", path)


def test_hints() -> None:
    assert str(unknown("train.loss", "mze", ["mse", "bce"])).endswith("did you mean 'mse'?")
    assert str(unknown("train.loss", "qqq", ["mse", "bce"])).endswith("it must be one of bce, mse")
