"""Streaming reducers: updates go in as they arrive, one vector comes out."""
