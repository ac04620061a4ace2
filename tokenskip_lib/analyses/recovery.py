"""Can the target model restore what pruning took away? Pruned chains in, recovered chains out.

If it can, the kept tokens imply the skipped ones, and the skipped tokens carried little of their own.

Source: TokenSkip (arXiv:2502.12067), figures 3 and 11.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pandas as pd

from tokenskip_lib.core.records import Chain, InputError, Problem, PrunedChain, RowKey
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.experiments.failures import say_failures
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, PRUNED, TRAIN_PROBLEMS
from tokenskip_lib.inference.build import build_engine
from tokenskip_lib.inference.engine import Request
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.models.prompts import build_recovery_prompt
from tokenskip_lib.problems.arithmetic import equations, found, numbers
from tokenskip_lib.problems.grading import split_output


@dataclass(frozen=True)
class RecoveredChain:
    """One chain at one ratio: the pruned text, the recovered text, and what each has of the original.

    A share counts the original's numbers (or equations) that the text has exactly; None if the original has none.
    """

    id: str
    ratio: float
    pruned: str
    recovered: str
    numbers_pruned: float | None
    numbers_recovered: float | None
    equations_pruned: float | None
    equations_recovered: float | None


@dataclass(frozen=True)
class RecoverySummary:
    """The mean share of one part at one ratio over n chains, with its 95% bootstrap interval."""

    part: str
    ratio: float
    n: int
    value: float
    low: float
    high: float


RECOVERY_COLUMNS = [field.name for field in fields(RecoveredChain)]
PARTS = ["numbers_pruned", "numbers_recovered", "equations_pruned", "equations_recovered"]


def recover(run: Run, ratios: Sequence[float], size: int) -> pd.DataFrame:
    """The target model recovers the run's first pruned chains at each ratio, greedily; nothing is written.

    Ratio 0 is added: there the model is given the question alone. What it finds at ratio 0 it worked out again
    and did not recover.

    Args:
        run: a run with pruned chains.
        ratios: ratios that the run's chains were pruned to.
        size: number of chains.

    Returns:
        One row for each chain and ratio, with the fields of RecoveredChain; a chain with a request that a server did
        not answer is left out, and stderr says so.

    Raises:
        InputError: the run's chains were not pruned to one of the ratios.

    Source: TokenSkip (arXiv:2502.12067), figures 3 and 11.
    """
    pruned = _pruned_texts(run, ratios, size)
    failed: dict[tuple, str] = {}
    recovered = _ask(run, pruned, failed)
    if failed:
        lost = {key[0] for key in failed}
        pruned = {key: text for key, text in pruned.items() if key.id not in lost}
        print(f"recovery: {say_failures(failed)}", file=sys.stderr)
    originals = {chain.id: chain.chain for chain in run.need(CHAINS, Chain, "generate")}
    rows = [_compare(key, originals[key.id], text, recovered[key]) for key, text in pruned.items()]
    table = pd.DataFrame([asdict(row) for row in rows], columns=RECOVERY_COLUMNS)
    return table.astype(dict.fromkeys(PARTS, float))


def _pruned_texts(run: Run, ratios: Sequence[float], size: int) -> dict[RowKey, str]:
    """The first chains at each ratio; at ratio 0 nothing."""
    given = {RowKey(chain.id, chain.ratio): chain for chain in run.need(PRUNED, PrunedChain, "prune")}
    pruned_to = {key.ratio for key in given}
    if other := [ratio for ratio in ratios if ratio not in pruned_to]:
        raise InputError(f"{run.folder / PRUNED}: no chains at {other[0]:g}; pruned were {sorted(pruned_to)}")
    ids = list(dict.fromkeys(chain.id for chain in run.in_problem_order(given.values())))[:size]
    keys = [RowKey(problem_id, ratio) for problem_id in ids for ratio in [*ratios, 0.0]]
    return {key: given[key].text if key.ratio else "" for key in keys}


def _ask(run: Run, pruned: dict[RowKey, str], failed: dict[tuple, str]) -> dict[RowKey, str]:
    """The chains that the target model writes from pruned ones, without the answers after them.

    Args:
        failed: gets the requests that a server did not answer.
    """
    profile, tokenizer = run.profile, load_tokenizer(run.profile.target)
    questions = {problem.id: problem.question for problem in run.need(TRAIN_PROBLEMS, Problem, "generate")}
    requests = [
        Request(
            key=key,
            prompt=build_recovery_prompt(tokenizer, questions[key.id], text, profile.prompts),
            max_new_tokens=profile.chains.max_new_tokens,
        )
        for key, text in pruned.items()
    ]
    engine = build_engine(profile, tokenizer, profile.chains.batch_size, failed=failed)
    made = [answer for batch in engine.generate(requests, label="recovery") for answer in batch]
    layout, phrases = profile.prompts.layout, profile.prompts.answer_phrases
    return {RowKey(*answer.key): split_output(answer.text, layout, phrases).chain for answer in made}


def _compare(key: RowKey, original: str, pruned: str, recovered: str) -> RecoveredChain:
    return RecoveredChain(
        id=key.id,
        ratio=key.ratio,
        pruned=pruned,
        recovered=recovered,
        numbers_pruned=found(numbers(original), numbers(pruned)),
        numbers_recovered=found(numbers(original), numbers(recovered)),
        equations_pruned=found(equations(original), equations(pruned)),
        equations_recovered=found(equations(original), equations(recovered)),
    )


def summarise_recovery(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean shares over chains with 95% bootstrap intervals (chains resampled).

    Args:
        table: what `recover` returns.

    Returns:
        One row for each of PARTS and each ratio, with the fields of RecoverySummary; n counts the chains whose
        original has some.
    """
    rows = []
    for part in PARTS:
        for ratio in sorted(set(table["ratio"])):
            shares = table.loc[table["ratio"] == ratio, part].dropna().to_numpy()
            if not len(shares):
                continue
            low, high = interval(resample(len(shares), seed) @ shares / len(shares))
            rows.append(RecoverySummary(part, ratio, len(shares), shares.mean(), low, high))
    columns = [field.name for field in fields(RecoverySummary)]
    return pd.DataFrame([asdict(row) for row in rows], columns=columns)
