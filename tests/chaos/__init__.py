"""Nodes as processes, behind a network and on disks that fail."""
