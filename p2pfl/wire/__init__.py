"""Messages as values and as bytes: types, heads, tensors, records, sessions. No I/O, no clock, no torch."""
