"""Recipes, compression methods, the training engine and cost counting."""
