import dataclasses

import pytest

from p2pfl.node.settings import NodeSettings


def test_the_defaults_make_sense_and_stand() -> None:
    settings = NodeSettings()
    assert settings.drain_seconds + settings.close_seconds <= 5  # a node stops within 5 s
    assert settings.backoff_first_seconds <= settings.backoff_most_seconds
    assert settings.quarantine_seconds <= settings.quarantine_most_seconds
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.strikes = 1  # type: ignore[misc]
