"""Who talks to whom: graphs, families of graphs, schedules that change every round, and mixing weights.

Cheap to import: networkx and numpy wait until a function needs them. `p2pfl.topology.mixing` (spectral analysis),
`p2pfl.topology.report` and `p2pfl.topology.draw` are imported by those who use them.
"""
