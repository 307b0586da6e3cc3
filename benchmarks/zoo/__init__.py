"""Small networks with random weights, one for each family that people deploy, and how they are exported.

The definitions serve the tests and `benchmarks/coverage.py`. Sizes are small and all different (heads, rows of a head,
tokens, vocabulary), because equal sizes hide which axis is which.
"""
