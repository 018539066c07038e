"""Links between nodes, the only place with I/O: in process, or over WebSockets under Noise. `base` has the contracts."""
