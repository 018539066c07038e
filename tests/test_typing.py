"""Mistakes in a course are static errors: each file in `typing/` makes some, and marks the lines `# E: code`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "typing").glob("*.py"))
ERROR = re.compile(r"^(?P<path>.+?):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$", re.MULTILINE)
MARK = re.compile(r"# E: (?P<codes>[a-z-]+(, [a-z-]+)*)$")


@pytest.fixture(scope="session")
def found(tmp_path_factory) -> dict[str, set[tuple[int, str]]]:
    """What mypy says of all files, by file: pairs of line and code."""
    cache = tmp_path_factory.mktemp("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}", "--config-file="]
    run = subprocess.run([*command, *FILES], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    errors: dict[str, set[tuple[int, str]]] = {path.name: set() for path in FILES}
    for match in ERROR.finditer(run.stdout):
        errors.setdefault(Path(match["path"]).name, set()).add((int(match["line"]), match["code"]))
    return errors


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_errors_are_just_where_they_are_marked(path, found) -> None:
    marked = {
        (number, code)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (mark := MARK.search(line))
        for code in mark["codes"].split(", ")
    }
    assert found[path.name] == marked
    assert bool(marked) == (path.stem != "correct")
