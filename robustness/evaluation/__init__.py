"""Evaluation: a suite becomes a plan, its shards become rows in a store, rows a leaderboard."""

# Part of every result's key. Raise it when a change to the code alters results, so that
# stores written before are not mistaken for current ones.
RESULTS_VERSION = 2
