"""LyaNet's claims (arXiv 2202.02526), measured side by side over several seeds."""
