import pytest

from p2pfl.errors import ConfigError
from p2pfl.privacy.spec import PrivacySpec


def test_is_plain_by_default() -> None:
    assert PrivacySpec().plain
    assert not PrivacySpec(mode="ldp", noise_multiplier=1.0).plain


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mode": "magic"}, r"privacy\.mode is 'magic'; it must be one of plain, cdp, ldp, ddp, decor"),
        ({"mode": "cdp"}, "give one of privacy.noise_multiplier and privacy.epsilon"),
        ({"mode": "cdp", "noise_multiplier": 1.0, "epsilon": 1.0}, "give one of"),
        ({"noise_multiplier": 1.0, "clip": 2.0}, r"privacy\.clip, privacy\.noise_multiplier is given, .* set the mode"),
        ({"mode": "cdp", "noise_multiplier": -1.0}, "must be finite, and not negative"),
        ({"mode": "cdp", "epsilon": float("inf")}, "must be finite"),
        ({"mode": "cdp", "epsilon": float("nan")}, "must be finite"),
        ({"mode": "cdp", "epsilon": 1.0, "clip": 0.0}, r"privacy\.clip is 0\.0; it must be above 0"),
        ({"mode": "cdp", "epsilon": 1.0, "delta": 1.0}, r"privacy\.delta is 1\.0; it must lie in \[0, 1\)"),
        ({"mode": "cdp", "epsilon": 1.0, "adjacency": "x"}, "one of zero-out, replace-one"),
        ({"mode": "ldp", "epsilon": 1.0, "mechanism": "tree"}, "goes with privacy.mode = 'cdp' only"),
        ({"mode": "ldp", "epsilon": 1.0, "quantile": 0.5}, "goes with privacy.mode = 'cdp' only"),
        ({"mode": "cdp", "epsilon": 1.0, "mechanism": "tree", "quantile": 0.5}, "does not go with"),
    ],
)
def test_mistakes_are_named(given: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PrivacySpec(**given)
