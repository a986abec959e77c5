"""What a recipe can name: encoders, vector fields, solvers, classifiers."""

VERSION = 1
"""Of what the classes of this package compute from given weights; part of the keys of results.

Raised where that changes by more than the order of sums, so that nothing that is stored of zoo
entries is taken for what they compute now.
"""
