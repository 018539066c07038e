"""One federated algorithm per file: its messages, its roles, its settings, its paper."""
