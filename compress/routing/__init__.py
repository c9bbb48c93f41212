"""Routed networks: dense branches cut from one network, of which one answers for each input."""
