"""trimtab: takes a trained vision checkpoint and makes it small and fast on a real device, with proof."""

__version__ = "0.1.0"
