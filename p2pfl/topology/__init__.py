"""Who talks to whom: graphs, families of graphs, schedules that change every round, and mixing weights.

Cheap to import: networkx and numpy wait until a function needs them. `p2pfl.topology.mixing` (spectral analysis),
`p2pfl.topology.report` and `p2pfl.topology.draw` are imported by those who use them.
"""

from p2pfl.topology.families import FAMILIES, build
from p2pfl.topology.file import Member, TopologyFile, dumps, load, loads
from p2pfl.topology.graph import Edge, Topology
from p2pfl.topology.schedule import Cycle, Drawn, Schedule
from p2pfl.topology.weights import metropolis_weights, own_weight, received_weights, topology_weights

__all__ = [
    "FAMILIES",
    "Cycle",
    "Drawn",
    "Edge",
    "Member",
    "Schedule",
    "Topology",
    "TopologyFile",
    "build",
    "dumps",
    "load",
    "loads",
    "metropolis_weights",
    "own_weight",
    "received_weights",
    "topology_weights",
]
