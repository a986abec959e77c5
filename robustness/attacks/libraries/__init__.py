"""Attacks of other libraries, one adapter per library."""
