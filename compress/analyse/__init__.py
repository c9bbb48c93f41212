"""Figures that say what a trained network has learnt."""
