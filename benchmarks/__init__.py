"""Benchmarks: ratios measured side by side in one run, printed and saved. `make bench`."""
