"""Links between nodes, the only I/O: in process, or over WebSockets under Noise. `base` has the contracts."""
