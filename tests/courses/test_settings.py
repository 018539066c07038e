import pytest

from p2pfl.courses.hierarchical import HierarchicalSettings
from p2pfl.courses.settings import FedAvgSettings
from p2pfl.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 0), ("evaluate_every", 0), ("fraction", 0.0), ("fraction", 1.1), ("quorum", 0.0),
        ("over_selection", -0.1), ("deadline_seconds", -1.0), ("min_clients", -1), ("patience", -1),
        ("target_accuracy", -0.5), ("weights", "none"), ("evaluate", "all"), ("keep", "first"), ("best_is", "good"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^course\.{field} is "):
        FedAvgSettings(**{field: value})


def test_what_decides_has_to_be_measured():
    with pytest.raises(ConfigError, match=r"course\.best_by is 'client_loss'; set course.evaluate to clients or both"):
        FedAvgSettings(best_by="client_loss")
    with pytest.raises(ConfigError, match=r"course\.target is 0\.5; name the metric"):
        FedAvgSettings(target=0.5)


def test_unseen_clients_have_to_be_evaluated():
    with pytest.raises(ConfigError, match=r"course.unseen is 1; it must lie in \[0, 1\)"):
        FedAvgSettings(unseen=1)
    with pytest.raises(ConfigError, match=r"course.unseen is set, and clients are not evaluated; set course.evaluate"):
        FedAvgSettings(unseen=0.2)
    with pytest.raises(ConfigError, match=r"course.unseen is 0.2; with course.coordinator = 'elect' it must be"):
        FedAvgSettings(unseen=0.2, evaluate="both", coordinator="elect")
    with pytest.raises(ConfigError, match=r"course.unseen is set, and hierarchical has all clients train"):
        HierarchicalSettings(unseen=0.2, evaluate="both")
