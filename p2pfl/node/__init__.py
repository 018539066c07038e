"""The node: links, peers, roles, events. `python -m p2pfl.node` runs one on a host."""
