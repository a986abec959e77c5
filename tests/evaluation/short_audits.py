"""A plugin by which audits are short in other processes too."""

from shortening import shorten

shorten(setattr)
