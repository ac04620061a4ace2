"""Scorers judged against importance that was measured: do they rank spans as the measurement does?

The measured scores are those of `leave_one_out` and `leave_one_out_rest` (pruning.deletion).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import InputError, ScoredChain
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.evaluation.tables import row_table

EXACT = ("leave_one_out", "leave_one_out_rest")  # scorers that measure, the answer's loss first
TOP = 0.3  # share of a chain's spans that count as its most important
NATS = 1e-3  # two measured losses that differ by less are ties: below it lies the rounding of a batch


@dataclass(frozen=True)
class AgreementRow:
    """How far one scorer agrees with the measured importance, over n chains.

    Attributes:
        truth: the scorer that measured.
        n: chains with at least two spans whose measured losses differ. The others rank nothing.
        correlation: Spearman's, within each chain, averaged over chains.
        overlap: of the most important TOP of a chain's spans, the share that the scorer has in its own TOP. Ties at
            the border count in part. Chance gives TOP.
        *_low, *_high: 95% bootstrap interval, chains resampled.
    """

    truth: str
    scorer: str
    n: int
    correlation: float
    correlation_low: float
    correlation_high: float
    overlap: float
    overlap_low: float
    overlap_high: float


def agreement_table(scored: Sequence[ScoredChain], *, seed: int) -> pd.DataFrame:
    """Every scorer against each measurement that is among the scored chains.

    Args:
        scored: chains by several scorers; those that a measurement has scored too are compared.

    Returns:
        The fields of AgreementRow, a row a measurement and scorer.

    Raises:
        InputError: nothing was measured.
    """
    by_scorer: dict[str, dict[str, ScoredChain]] = defaultdict(dict)
    for chain in scored:
        by_scorer[chain.scorer][chain.id] = chain
    truths = [name for name in EXACT if name in by_scorer]
    if not truths:
        raise InputError(f"no exact importance to compare with: add {EXACT[0]} to importance.compare_with")
    rows = []
    for truth in truths:
        for scorer, chains in by_scorer.items():
            shared = [key for key in by_scorer[truth] if key in chains]
            pairs = [(_losses(by_scorer[truth][key]), np.array(chains[key].importance)) for key in shared]
            ranked = [(losses, values) for losses, values in pairs if len(set(losses)) > 1]
            if scorer != truth and ranked:
                rows.append(_agreement(truth, scorer, ranked, seed))
    return row_table(rows, AgreementRow)


def top_share(values: np.ndarray, share: float = TOP) -> np.ndarray:
    """How far each of S values is among the highest `share` of them: 1, 0, or a fraction for ties at the border.

    Example:
        >>> top_share(np.array([5.0, 1.0, 1.0, 0.0]), 0.5).tolist()
        [1.0, 0.5, 0.5, 0.0]
    """
    number = max(1, round(share * len(values)))
    border = np.sort(values)[-number]
    above, tied = values > border, values == border
    return above + tied * ((number - above.sum()) / tied.sum())


def _losses(chain: ScoredChain) -> np.ndarray:
    return np.round(np.array(chain.importance) / NATS)


def _agreement(truth: str, scorer: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> AgreementRow:
    from scipy.stats import spearmanr

    # A scorer that gives all spans one score ranks none of them: that is no agreement.
    correlations = [spearmanr(losses, values).statistic if len(set(values)) > 1 else 0.0 for losses, values in pairs]
    overlaps = [(wanted := top_share(losses)) @ top_share(values) / wanted.sum() for losses, values in pairs]
    measured = np.array([correlations, overlaps])
    draws = resample(len(pairs), seed) @ measured.T / len(pairs)
    (low, high), (overlap_low, overlap_high) = interval(draws[:, 0]), interval(draws[:, 1])
    means = measured.mean(1)
    return AgreementRow(truth, scorer, len(pairs), means[0], low, high, means[1], overlap_low, overlap_high)
