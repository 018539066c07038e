"""Courses in one process on virtual time: nodes, roles and messages as on hosts; clock and wire are modelled."""
