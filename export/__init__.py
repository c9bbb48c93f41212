"""Artifacts: one exporter per format, and the parity verdict without which an artifact does not exist."""
