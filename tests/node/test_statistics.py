from p2pfl.link.base import LinkStatistics
from p2pfl.node.statistics import summed


def test_sums() -> None:
    assert summed([]) == LinkStatistics()
    assert summed([LinkStatistics(1, 2, 3, 4), LinkStatistics(10, 20, 30, 40)]) == LinkStatistics(11, 22, 33, 44)
