"""DESIGN.md is true where that can be looked up: every fault and every invariant has a test, and all of them exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from p2pfl.sim.checkers import CHECKERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def rows(kind: str) -> list[list[str]]:
    """The cells of the lines whose first cell is a number of this kind."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if re.fullmatch(rf"{kind}\d+", cells[0])]


@cache
def functions(path: Path) -> dict[str, str]:
    """The functions of a module, by name, and what decorates each of them."""
    defined = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {node.name: " ".join(map(ast.unparse, node.decorator_list)) for node in defined}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    assert name.startswith("test_") and Path(path).name.startswith("test_"), "or pytest does not find it"
    assert name in functions(ROOT / path)
    assert "xfail" not in functions(ROOT / path)[name], "or it proves nothing"


def test_every_fault_and_every_invariant_is_there() -> None:
    assert [cells[0] for cells in rows("F")] == [f"F{number}" for number in range(1, 35)]
    assert sorted({int(cells[0][1:]) for cells in rows("I")}) == list(range(1, 13))


@pytest.mark.parametrize("cells", [*rows("F"), *rows("I")], ids=lambda cells: cells[0])
def test_each_has_a_test(cells: list[str]) -> None:
    assert re.fullmatch(r"`tests/[^`]+`(, `tests/[^`]+`)*", cells[3])


def test_every_checker_is_there() -> None:
    named = [cells[2].strip("`") for cells in rows("I")]
    assert sorted(named) == sorted(checker.__name__ for checker in CHECKERS.values())
