"""Procedures: recipe steps that train a kind of network by its paper's own method."""
