"""What runs inside the environments, by their Python: nothing here imports trimtab."""
