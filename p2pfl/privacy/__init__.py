"""What keeps the examples of one node from being read out of what it sends."""
