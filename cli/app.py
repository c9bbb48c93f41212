"""The command line."""

from __future__ import annotations


def main() -> None:
    """Placeholder until the verbs land in this commit series."""
