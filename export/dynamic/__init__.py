"""Deployment modes of dynamic networks: gated ones gathered, routed ones as control flow."""
