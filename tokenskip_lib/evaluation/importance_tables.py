"""Scored chains as tables, one row a span: what notebooks look at and figures draw."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.spans import span_kind


def importance_ranks(chain: ScoredChain) -> np.ndarray:
    """Importance as ranks in the chain, 0 to 1, so that scorers of different units can be compared."""
    return (rankdata(chain.importance) - 0.5) / len(chain.importance)


def span_table(scored: Sequence[ScoredChain]) -> pd.DataFrame:
    """Columns scorer, id, position (of the span in its chain), span, kind, importance, rank."""
    frames = [
        pd.DataFrame(
            {
                "scorer": chain.scorer,
                "id": chain.id,
                "position": range(len(chain.spans)),
                "span": (texts := [chain.text[start:end] for start, end in chain.spans]),
                "kind": [span_kind(text) for text in texts],
                "importance": chain.importance,
                "rank": importance_ranks(chain),
            }
        )
        for chain in scored
    ]
    return pd.concat(frames, ignore_index=True)


def kept_table(scored: Sequence[ScoredChain], ratios: Sequence[float], *, count_tokens: CountTokens) -> pd.DataFrame:
    """`span_table` once a ratio, with columns ratio and kept (bool): what pruning by importance alone leaves."""
    table, pruned = span_table(scored), prune_many(scored, ratios, count_tokens=count_tokens)
    tables = []
    for number, ratio in enumerate(ratios):
        kept = [
            np.isin(range(len(chain.spans)), pruned[i * len(ratios) + number].kept) for i, chain in enumerate(scored)
        ]
        tables.append(table.assign(ratio=ratio, kept=np.concatenate(kept)))
    return pd.concat(tables, ignore_index=True)


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of every two scorers, S x S: within each chain, averaged over chains.

    Args:
        table: the columns of `span_table`. Chains in which a scorer ties everything count for none of its pairs.
    """
    wide = table.pivot_table(index=["id", "position"], columns="scorer", values="rank", sort=False)
    wide = wide[list(table["scorer"].unique())]
    return wide.groupby(level="id", sort=False).corr().groupby(level="scorer", sort=False).mean()
