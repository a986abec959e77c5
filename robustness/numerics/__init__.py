"""Proven arithmetic on tensors: rounding units, upper bounds, norms. Knows no network."""
