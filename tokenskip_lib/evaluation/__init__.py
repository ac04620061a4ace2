"""Methods, metrics and comparisons."""
