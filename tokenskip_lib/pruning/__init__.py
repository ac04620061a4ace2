"""Importance scores, and what is kept of a chain at a ratio."""
