"""Checks of a model: what may make its attacks look weaker than they are."""
