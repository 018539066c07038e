"""Every example runs, warns of nothing and says what it set out to say; every course file simulates."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from p2pfl.app.config import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"

# One telling line of each, as a pattern over the whole of stdout.
TELLING = {
    "demo.py": r"^the models are EQUAL, test accuracy 0\.9[3-9]",
    "embed_in_aiohttp.py": r'^GET /status: 200 \{"round"[^$]*^afterwards:  200 \{"round": 15, "accuracy": 0\.9',
    "fedavg.py": r"^round 12: 4 updates, accuracy 0\.[89]",
    "gossip.py": r"^full +1\.000( +0\.000){6}",
    "gossip_privacy.py": r"^without noise: solved for 7 others, relative error \de-0[4-9]\n"
    r"with noise: solved for 7 others, relative error \de\+0",
    "hello.py": r"^house says: hello Emmy, you are guest number 2$",
    "hierarchical.py": r"^hierarchical: .*\n  accuracy 0\.9",
    "notebook.py": r"^after: accuracy 0\.",
    "own_message.py": r"^batteries: client 1 \d+ %, client 2 \d+ %, client 3 \d+ %$",
    "own_model.py": r"^round 15  accuracy 0\.9",
    "privacy.py": r"^plain +99\.0 dB .* 100%(.*\n)+InconsistentServer: 5 of 5 clients refuse, unmasked: False$",
    "without_torch.py": r"^round 12  accuracy 0\.[89]",
}


def test_each_example_has_its_telling_line() -> None:
    assert sorted(TELLING) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", TELLING)
def test_examples_are_short_and_say_what_they_show(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert text.startswith('"""')


@pytest.mark.sockets
@pytest.mark.parametrize("name", TELLING)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(EXAMPLES / name)],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(TELLING[name], done.stdout, re.MULTILINE), done.stdout
    # Development mode tells of steps of a loop that take over 0.1 s, such as the first import of aiohttp.
    said = [line for line in done.stderr.splitlines() if not re.match(r"Executing <.*> took [\d.]+ seconds$", line)]
    assert not said


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_course_files_are_courses(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    config = load_config(path)
    assert config.course.name == given["course"]["name"]
    assert config.topology.n == given.get("topology", {}).get("n", config.topology.n)
