"""Evaluation: a suite becomes a plan, its shards become rows in a store, rows a leaderboard."""
