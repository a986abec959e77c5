"""Flows on the probability simplex: cones, zonotopes, and tubes made of them."""
