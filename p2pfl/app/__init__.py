"""What people run: the command line, course files, and everything from these to running nodes."""
