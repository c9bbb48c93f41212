"""Dynamic pruning: gates that decide for every sample which channels are computed."""
