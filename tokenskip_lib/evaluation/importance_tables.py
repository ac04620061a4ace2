"""Scored chains as tables with one row a span, for notebooks and figures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import PrunedKey, ScoredChain
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.display import importance_ranks
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.spans import span_kinds


def span_table(scored: Sequence[ScoredChain]) -> pd.DataFrame:
    """Columns scorer, id, position (of the span in its chain), span, kind, importance, rank."""
    frames = [
        pd.DataFrame(
            {
                "scorer": chain.scorer,
                "id": chain.id,
                "position": range(len(chain.spans)),
                "span": (texts := [chain.text[start:end] for start, end in chain.spans]),
                "kind": span_kinds(texts),
                "importance": chain.importance,
                "rank": importance_ranks(chain.importance),
            }
        )
        for chain in scored
    ]
    return pd.concat(frames, ignore_index=True)


def kept_table(scored: Sequence[ScoredChain], ratios: Sequence[float], *, count_tokens: CountTokens) -> pd.DataFrame:
    """`span_table` once a ratio, with the columns ratio and kept (bool). Chains are pruned by importance alone."""
    table = span_table(scored)
    pruned = {chain.key: chain for chain in prune_many(scored, ratios, count_tokens=count_tokens)}
    tables = []
    for ratio in ratios:
        kept = []
        for chain in scored:
            chosen = pruned[PrunedKey(chain.id, chain.scorer, ratio)].kept
            kept.append(np.isin(range(len(chain.spans)), chosen or []))
        tables.append(table.assign(ratio=ratio, kept=np.concatenate(kept)))
    return pd.concat(tables, ignore_index=True)


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of every two scorers, S x S: within each chain, averaged over chains.

    Args:
        table: the columns of `span_table`. If a scorer gives all spans of a chain one score, the chain does not count
            for that scorer's pairs.
    """
    wide = table.pivot_table(index=["id", "position"], columns="scorer", values="rank", sort=False)
    wide = wide[list(table["scorer"].unique())]
    return wide.groupby(level="id", sort=False).corr().groupby(level="scorer", sort=False).mean()


def kind_ranks(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Mean rank of each kind of span, a row for each scorer and kind: columns scorer, kind, rank, low, high.

    Args:
        table: the columns of `span_table`.

    low and high are the 95% bootstrap interval. Whole chains are resampled, because the spans of one chain are not
    independent.
    """
    rows = []
    for (scorer, kind), spans in table.groupby(["scorer", "kind"], sort=False):
        chains = spans.groupby("id")["rank"].agg(["sum", "count"])
        drawn = resample(len(chains), seed)
        low, high = interval((drawn @ chains["sum"]) / (drawn @ chains["count"]))
        rows.append({"scorer": scorer, "kind": kind, "rank": spans["rank"].mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def disagreement_table(table: pd.DataFrame, number: int = 14) -> pd.DataFrame:
    """The frequent spans on which scorers differ most, the widest apart first: each scorer's mean rank.

    Args:
        table: columns scorer, span and rank, one row a span.
        number: rows, of the spans that occur at least ten times and are one in a thousand (or of the most frequent
            tenth): the rarer a span, the further luck alone parts its means.

    Returns:
        A row for each span: how many times it occurs, and a column for each scorer.
    """
    scorers = table["scorer"].unique()
    times = table["span"].value_counts().div(len(scorers)).rename("times")
    frequent = times[times >= min(max(10, 0.001 * times.sum()), float(times.quantile(0.9)))].index
    means = table[table["span"].isin(frequent)].pivot_table(index="span", columns="scorer", values="rank")[scorers]
    widest = (means.max(axis=1) - means.min(axis=1)).sort_values(ascending=False).index[:number]
    return means.loc[widest].assign(times=times).astype({"times": int})
