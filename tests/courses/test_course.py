import pytest

from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.hierarchical import HIERARCHICAL, HierarchicalSettings
from p2pfl.courses.pushsum import PUSHSUM, PushsumSettings
from p2pfl.topology.families import build
from tests.courses.kit import check_course

COURSES = {
    "fedavg": (FEDAVG, FedAvgSettings(rounds=3), build("star", 5)),
    "fedavg, all settings": (
        FEDAVG,
        FedAvgSettings(rounds=3, fraction=0.5, over_selection=0.5, evaluate="both", weights="equal", keep="best"),
        build("star", 7),
    ),
    "hierarchical": (HIERARCHICAL, HierarchicalSettings(rounds=2, edge_rounds=2), build("hierarchy", 7)),
    "dpsgd": (DPSGD, DpsgdSettings(rounds=3), build("ring", 5)),
    "dpsgd, combine": (DPSGD, DpsgdSettings(rounds=3, order="combine"), build("one-peer-exponential", 4)),
    "adpsgd": (ADPSGD, AdpsgdSettings(rounds=3), build("ring", 4)),
    "pushsum": (PUSHSUM, PushsumSettings(rounds=3), build("exponential", 5)),
    "pushsum, free": (PUSHSUM, PushsumSettings(rounds=3, pace="free"), build("ring", 4)),
}


@pytest.mark.parametrize(("course", "settings", "topology"), COURSES.values(), ids=COURSES)
def test_conformance(course, settings, topology):
    check_course(course, settings, topology)
