"""What bounds how much others learn of one node's data: masks that cancel, clipping, noise, and what they amount to."""
