"""Checkpoints in, Bundles, the I/O contract, the architecture zoo and tasks: the ground floor, which imports no other room."""
