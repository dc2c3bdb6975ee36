"""Benchmarks: what the package costs and gains; none of them is needed to use it."""
