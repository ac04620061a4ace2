"""TokenSkip: chains of thought that skip their unimportant tokens, by a ratio chosen at inference."""

__version__ = "0.1.0"
