"""Where the public test vectors are: beside the checkout, or where P2PFL_VECTORS says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("P2PFL_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))


def load(name: str) -> dict[str, Any]:
    """The vectors in a file, or a skip."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set P2PFL_VECTORS to a folder that has {name}")
    return json.loads(path.read_text())


def wycheproof(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(group, test) of a Wycheproof file."""
    return [(group, test) for group in load(f"wycheproof_{name}.json")["testGroups"] for test in group["tests"]]
