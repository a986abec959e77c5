"""Everything that is committed of results, made again from the code at hand, part by part.

Not to be mistaken for `numerics.reproducible`, which is about the bits of one computation.
"""
