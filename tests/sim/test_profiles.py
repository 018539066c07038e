import pytest

from p2pfl.sim.availability import AvailabilitySpec
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.profiles import PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_made_of_values_that_can_be(name):
    tables = PROFILES[name]
    assert set(tables) == {"network", "devices", "availability"}
    NetworkSpec(**tables["network"])
    DeviceSpec(**tables["devices"])
    AvailabilitySpec(**tables["availability"])


def test_there_are_four_that_differ():
    assert list(PROFILES) == ["lan", "wan", "phones", "hospitals"]
    assert len({str(tables) for tables in PROFILES.values()}) == 4
