"""Lottery pruning: rounds of training, scoring, masking and rewinding, held to a budget of missed positives."""
