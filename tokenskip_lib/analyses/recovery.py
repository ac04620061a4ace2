"""Can the target model write out again what pruning took away? Pruned chains in, recovered chains out.

If it can, the skipped tokens carried little that the kept ones do not imply.

Source: TokenSkip (arXiv:2502.12067), figure 3.
"""

from collections.abc import Sequence

import pandas as pd

from tokenskip_lib.core.records import Chain, InputError, Problem, PrunedChain, RowKey
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, PRUNED, TRAIN_PROBLEMS
from tokenskip_lib.inference.build import build_engine
from tokenskip_lib.inference.engine import Request
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.models.prompts import build_recovery_prompt
from tokenskip_lib.problems.arithmetic import equations, found, numbers
from tokenskip_lib.problems.grading import split_output

RECOVERY_COLUMNS = ["id", "ratio", "pruned", "recovered", "numbers_pruned", "numbers_recovered"]
RECOVERY_COLUMNS += ["equations_pruned", "equations_recovered"]


def recover(run: Run, ratios: Sequence[float], size: int) -> pd.DataFrame:
    """The target model recovers the run's first pruned chains at each ratio, greedily; nothing is written.

    Ratio 0 is added to them, where the model is given the question alone: what it finds there was worked
    out again, not recovered.

    Returns:
        A row a chain and ratio, in RECOVERY_COLUMNS: shares of the original's numbers and equations
        that are found, exactly, in the pruned and in the recovered text; missing where it has none.

    Raises:
        InputError: a ratio that the run's chains were not pruned to.
    """
    profile, tokenizer = run.profile, load_tokenizer(run.profile.target)
    given = {RowKey(chain.id, chain.ratio): chain for chain in run.need(PRUNED, PrunedChain, "prune")}
    pruned_to = {ratio for _, ratio in given}
    if other := [ratio for ratio in ratios if ratio not in pruned_to]:
        raise InputError(f"{run.folder / PRUNED}: no chains at {other[0]:g}; pruned were {sorted(pruned_to)}")
    questions = {problem.id: problem.question for problem in run.need(TRAIN_PROBLEMS, Problem, "generate")}
    ids = list(dict.fromkeys(chain.id for chain in run.in_problem_order(given.values())))[:size]
    texts = {(name, ratio): given[name, ratio].text if ratio else "" for name in ids for ratio in [*ratios, 0.0]}
    originals = {chain.id: chain.chain for chain in run.need(CHAINS, Chain, "generate")}
    requests = [
        Request(
            key=RowKey(name, ratio),
            prompt=build_recovery_prompt(tokenizer, questions[name], text, profile.prompts),
            max_new_tokens=profile.chains.max_new_tokens,
        )
        for (name, ratio), text in texts.items()
    ]
    engine = build_engine(profile, tokenizer, profile.chains.batch_size)
    answers = {answer.key: answer.text for batch in engine.generate(requests, label="recovery") for answer in batch}
    rows = []
    for (name, ratio), pruned in texts.items():
        recovered, original = answers[name, ratio], originals[name]
        recovered = split_output(recovered, profile.prompts.layout).chain  # what it answers is no part of the chain
        shares = [found(items(original), items(text)) for items in (numbers, equations) for text in (pruned, recovered)]
        rows.append([name, ratio, pruned, recovered, *shares])
    return pd.DataFrame(rows, columns=RECOVERY_COLUMNS).astype(dict.fromkeys(RECOVERY_COLUMNS[4:], float))


def summarise_recovery(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Means over chains with their 95% bootstrap intervals (chains resampled), from what `recover` gives.

    Returns:
        A row a part (numbers_pruned, ...) and ratio: part, ratio, n (chains that have some), value, low, high.
    """
    rows = []
    for part in RECOVERY_COLUMNS[4:]:
        for ratio, shares in table.groupby("ratio")[part]:
            shares = shares.dropna().to_numpy()
            if not len(shares):
                continue
            draws = resample(len(shares), seed) @ shares / len(shares)
            rows.append([part, ratio, len(shares), shares.mean(), *interval(draws)])
    return pd.DataFrame(rows, columns=["part", "ratio", "n", "value", "low", "high"])
