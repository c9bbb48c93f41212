"""The device kind "browser": a page that trimtab serves runs artifacts on a phone or computer that has a browser and nothing else."""
