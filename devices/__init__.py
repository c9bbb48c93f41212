"""Devices and runtimes, and honest latency measurements on them. Never imports torch."""
