"""The public functions: load, score, prune, train, generate."""
