"""Bootstrap resampling, and 95% intervals."""

import numpy as np

DRAWS = 2000  # resamples of a bootstrap


def resample(problems: int, seed: int) -> np.ndarray:
    """DRAWS x P: how often each problem is in a sample of as many, drawn with replacement; rows sum to P."""
    return np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=DRAWS)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share.

    Example:
        >>> [round(end, 3) for end in wilson(9, 10)]
        [0.596, 0.982]
    """
    from scipy.stats import binomtest

    ends = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(ends.low), float(ends.high)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95% of draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
