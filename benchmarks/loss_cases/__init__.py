"""The cases of `benchmarks/losses.py`, one file a family."""
