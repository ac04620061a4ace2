"""What a scorer's pruning costs the answer, beside the best that is known: the regret of each scorer at each ratio.

The oracle leaves out the spans by greedy deletion (pruning.deletion). It reads the answer that it wants to keep, so no
scorer that works without it can be expected to reach it; the distance says how much there is to win.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from tokenskip_lib.core.progress import Bar
from tokenskip_lib.core.records import Chain, DeletionCurve, IdKey, PrunedKey, ScoredChain
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.evaluation.tables import row_table
from tokenskip_lib.experiments.run import Run, writes
from tokenskip_lib.experiments.steps import CHAINS, ORACLE_CURVES, REGRET, SCORED
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.deletion import MOST_SPANS, LeaveOneOutScorer, greedy_deletion
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.registry import build_scorer


@dataclass(frozen=True)
class RegretRow:
    """One scorer at one ratio, over n chains.

    Attributes:
        answer_log_prob: log p(answer | question, pruned chain) in nats, the mean over chains.
        oracle: the same of the oracle's chain with as many tokens or fewer.
        regret: oracle - answer_log_prob, with its 95% bootstrap interval, chains resampled.
    """

    scorer: str
    ratio: float
    n: int
    answer_log_prob: float
    oracle: float
    regret: float
    regret_low: float
    regret_high: float


@writes
def regret_table(run: Run, size: int) -> pd.DataFrame:
    """Measure the regret of every scorer of a run, by importance alone, and write regret.csv.

    The oracle's curves are written to 02_oracle.jsonl, chain by chain, and are not made again.

    Args:
        run: a run whose chains are scored.
        size: how many chains, the first that all scorers scored; those of more than MOST_SPANS spans are left out,
            and run.note counts them.

    Returns:
        The fields of RegretRow, a row a scorer and ratio below 1; no row if every chain has too many spans.
    """
    profile = run.profile
    scored = run.need(SCORED, ScoredChain, "score")
    names = dict.fromkeys([profile.importance.scorer, *profile.importance.compare_with])
    by_scorer = {name: {chain.id: chain for chain in scored if chain.scorer == name} for name in names}
    shared = [c.id for c in scored if all(c.id in chains for chains in by_scorer.values())]
    ids = list(dict.fromkeys(shared))[:size]
    short = [key for key in ids if all(len(chains[key].spans) <= MOST_SPANS for chains in by_scorer.values())]
    run.note("score", oracle_chains=len(short), oracle_chains_too_long=len(ids) - len(short))
    if not short:
        return row_table([], RegretRow)
    target = TargetModel(profile.target, profile.prompts)
    measure = cast(LeaveOneOutScorer, build_scorer("leave_one_out", target, profile.importance, seed=profile.seed))
    originals = {chain.id: chain for chain in run.need(CHAINS, Chain, "generate") if chain.id in short}
    curves = _curves(run, measure, [originals[key] for key in short])
    ratios = [ratio for ratio in profile.pruning.ratios if ratio < 1]
    count = batch_token_counter(target.tokenizer)
    found = np.zeros((len(by_scorer), len(short), len(ratios), 2))
    for place, key in enumerate(short):
        lengths = count(curves[key].texts)
        for row, chains in enumerate(by_scorer.values()):
            pruned = {c.key: c for c in prune_many([chains[key]], ratios, count_tokens=count)}
            kept = [pruned[PrunedKey(key, chains[key].scorer, ratio)] for ratio in ratios]
            found[row, place, :, 0] = measure.answer_log_probs(originals[key], [chain.text for chain in kept])
            found[row, place, :, 1] = [_best(curves[key], lengths, chain.tokens) for chain in kept]
    rows = [
        _summary(scorer, ratio, found[row, :, column], profile.seed)
        for row, scorer in enumerate(by_scorer)
        for column, ratio in enumerate(ratios)
    ]
    table = row_table(rows, RegretRow).round(4)
    run.write_result(table, REGRET)
    return table


def _curves(run: Run, measure: LeaveOneOutScorer, chains: Sequence[Chain]) -> dict[str, DeletionCurve]:
    """The oracle's curve of each chain, made where it is not there yet."""
    store = run.store(ORACLE_CURVES, DeletionCurve)
    for chain in Bar(chains, desc="greedy deletion", unit="chain"):
        if IdKey(chain.id) not in store:
            store.append([greedy_deletion(measure, chain)])
    return {curve.id: curve for curve in store}


def _best(curve: DeletionCurve, lengths: Sequence[int], tokens: int) -> float:
    """The highest log p(answer) on the curve among versions of at most so many tokens, or else that of the last."""
    within = [value for value, length in zip(curve.answer_log_probs, lengths, strict=True) if length <= tokens]
    return max(within, default=curve.answer_log_probs[-1])


def _summary(scorer: str, ratio: float, found: np.ndarray, seed: int) -> RegretRow:
    """found: N x 2, the scorer's and the oracle's log p(answer) of each chain."""
    regrets = found[:, 1] - found[:, 0]
    low, high = interval(resample(len(regrets), seed) @ regrets / len(regrets))
    own, oracle = found.mean(0)
    return RegretRow(scorer, ratio, len(regrets), own, oracle, regrets.mean(), low, high)
