"""Bootstrap resampling and intervals."""

import numpy as np

DRAWS = 2000  # resamples of a bootstrap


def resample(problems: int, seed: int) -> np.ndarray:
    """DRAWS x P: how often each problem is in a sample of as many, drawn with replacement; rows sum to P."""
    return np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=DRAWS)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95% of draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
