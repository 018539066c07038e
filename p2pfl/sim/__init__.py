"""Courses in one process on virtual time: the same nodes, roles and messages as on hosts; the clock and the wire are modelled."""
