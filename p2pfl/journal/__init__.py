"""What outlives a process: committed rounds with their certificates, and what a node must not forget."""
