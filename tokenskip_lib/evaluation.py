"""Methods x ratios -> requests, and predictions -> metrics with intervals.

Every method answers the same problems through the same engine; they differ in prompt, adapter and
budget alone. Metrics are computed from records on disk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from tokenskip_lib.config import nearest
from tokenskip_lib.generation import Engine, Generation, Request
from tokenskip_lib.grading import is_correct, split_output
from tokenskip_lib.models import batch_token_counter
from tokenskip_lib.prompts import BASELINE_PROMPTS, build_prompt
from tokenskip_lib.pruning import CountTokens
from tokenskip_lib.records import InputError, Prediction, Problem
from tokenskip_lib.settings import EvaluationSettings, PromptSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHODS = ["original", "tokenskip", "truncation", *BASELINE_PROMPTS]
# These read a ratio; the others give one row.
RATIO_METHODS = {"tokenskip", "truncation", "lc_prompt"}
METRIC_COLUMNS = [
    "method",
    "ratio",
    "scorer",
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "chain_tokens",
    "actual_ratio",
    "cut_off",
    "seconds_per_problem",
    "seed",
]


def method_ratios(settings: EvaluationSettings) -> list[tuple[str, float]]:
    """Every (method, ratio) of an evaluation, original first; ratio 1.0 for a method that reads none.

    Raises:
        InputError: unknown method, or ratios given to a method that reads none, or missing.
    """
    pairs = []
    for method, ratios in settings.methods.items():
        if method not in METHODS:
            raise InputError(f"evaluation.methods: unknown method '{method}'{nearest(method, METHODS)}")
        if bool(ratios) != (method in RATIO_METHODS):
            wanted = "needs a list of ratios" if method in RATIO_METHODS else "takes no ratios: write []"
            raise InputError(f"evaluation.methods.{method} {wanted}")
        pairs += [(method, ratio) for ratio in sorted(ratios, reverse=True)] or [(method, 1.0)]
    return pairs


def answer_budget(settings: EvaluationSettings, method: str, ratio: float) -> int:
    """The most new tokens that an answer may have; truncation's is not known before the original's answers are."""
    scaled = method == "tokenskip" and settings.budget == "scaled"
    return max(1, round(settings.max_new_tokens * (ratio if scaled else 1)))


def truncation_budget(output_tokens: Sequence[int], ratio: float) -> int:
    """The one budget, for all problems, under which the original's outputs average `ratio` of their length.

    The smallest cap c with mean(min(length, c)) >= ratio * mean(length): truncation is compared at
    equal tokens, and answers shorter than the cap still finish.

    Args:
        output_tokens: the original's output length of each problem, tokens.
        ratio: fraction of those tokens to spend.

    Source: TokenSkip's Truncation baseline caps max_new_tokens at a fraction of the original's
        budget; its published actual ratios (.95, .70, .49) are of the tokens really spent.
    """
    if not any(output_tokens):
        raise ValueError("no output of the original to take a budget from")
    wanted = ratio * sum(output_tokens)
    caps = range(1, max(output_tokens) + 1)
    return caps[bisect_left(caps, wanted, key=lambda cap: sum(min(length, cap) for length in output_tokens))]


def build_requests(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    *,
    method: str,
    ratio: float,
    max_new_tokens: int,
    adapter: str | None = None,
) -> list[Request]:
    """One request a problem for a method at a ratio; its id is the key that a Prediction has."""
    return [
        Request(
            id=(problem.id, method, ratio),
            prompt=build_prompt(tokenizer, problem.question, prompts, method=method, ratio=ratio),
            max_new_tokens=max_new_tokens,
            adapter=adapter,
        )
        for problem in problems
    ]


def answer(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: PromptSettings,
    plan: Sequence[tuple[str, float, int]],
    *,
    is_done: Callable[[tuple], bool] = lambda _: False,
    label: str,
    attached: bool = False,
) -> Iterator[list[Prediction]]:
    """Every method and ratio of a plan over the problems in one pass, graded batch by batch.

    Args:
        plan: (method, ratio, max_new_tokens) of each.
        is_done: whether a prediction of this key is already on disk.
        attached: the engine's model has the adapter `tokenskip` attached, for that method alone.
    """
    by_id = {problem.id: problem for problem in problems}
    budgets = {(method, ratio): budget for method, ratio, budget in plan}
    requests = [
        request
        for method, ratio, budget in plan
        for request in build_requests(
            problems,
            tokenizer,
            prompts,
            method=method,
            ratio=ratio,
            max_new_tokens=budget,
            adapter="tokenskip" if attached and method == "tokenskip" else None,
        )
    ]
    count = batch_token_counter(tokenizer)
    for batch in engine.generate(requests, is_done=is_done, label=label):
        yield [
            predict(by_id[g.id[0]], g, max_new_tokens=budgets[g.id[1:]], count_tokens=count, layout=prompts.layout)
            for g in batch
        ]


def predict(
    problem: Problem,
    generation: Generation,
    *,
    max_new_tokens: int,
    count_tokens: CountTokens,
    layout: str = "answer",
) -> Prediction:
    """Grade one generation. Chain tokens are counted up to the answer, by one rule for every method.

    Args:
        generation: its id is the prediction's key: (problem id, method, ratio).
    """
    parts = split_output(generation.text, layout)
    _, method, ratio = generation.id
    chain_tokens, answer_tokens = count_tokens([parts.chain.rstrip(), parts.answer])
    return Prediction(
        id=problem.id,
        method=method,
        ratio=ratio,
        answer=problem.answer,
        output=generation.text,
        chain=parts.chain,
        prediction=parts.prediction,
        is_correct=is_correct(parts.prediction, problem.answer),
        chain_tokens=chain_tokens,
        answer_tokens=answer_tokens,
        max_new_tokens=max_new_tokens,
        cut_off=generation.cut_off,
        seconds=round(generation.seconds, 4),
    )


def compute_metrics(predictions: Iterable[Prediction], *, scorer: str, seed: int) -> pd.DataFrame:
    """One row a method and ratio, in METRIC_COLUMNS, from predictions; methods as METHODS lists them.

    accuracy is a fraction with its 95% Wilson interval; chain_tokens the mean over problems;
    actual_ratio those tokens against the original's; cut_off the number of answers the budget
    ended; seconds_per_problem wall time at the evaluation's batch size. `scorer` names the
    importance that the adapter's training chains were pruned by, on tokenskip's rows only.
    """
    from scipy.stats import binomtest

    table = pd.DataFrame([prediction.model_dump(exclude={"output", "chain"}) for prediction in predictions])
    if "original" not in set(table["method"]):
        raise InputError("no predictions of 'original': actual ratios are measured against it")
    original_tokens = table.loc[table["method"] == "original", "chain_tokens"].mean()
    rows = []
    for (method, ratio), group in table.groupby(["method", "ratio"], sort=False):
        correct, n = int(group["is_correct"].sum()), len(group)
        interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
        rows.append(
            {
                "method": method,
                "ratio": ratio,
                "scorer": scorer if method == "tokenskip" else "",
                "n": n,
                "accuracy": round(correct / n, 4),
                "accuracy_low": round(interval.low, 4),
                "accuracy_high": round(interval.high, 4),
                "chain_tokens": round(group["chain_tokens"].mean(), 2),
                "actual_ratio": round(group["chain_tokens"].mean() / original_tokens, 4),
                "cut_off": int(group["cut_off"].sum()),
                "seconds_per_problem": round(group["seconds"].mean(), 4),
                "seed": seed,
            }
        )
    rows.sort(key=lambda row: (METHODS.index(row["method"]), -row["ratio"]))
    return pd.DataFrame(rows, columns=METRIC_COLUMNS)


def markdown_table(metrics: pd.DataFrame) -> str:
    """The metrics as the Markdown table of notebook 05 and the README."""
    columns = ["method", "ratio", "n", "accuracy % (95% interval)", "chain tokens", "actual ratio", "cut off"]
    columns.append("seconds a problem")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in metrics.itertuples():
        ratio = f"{row.ratio:.1f}" if row.method in RATIO_METHODS else ""
        interval = f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.1f}-{100 * row.accuracy_high:.1f})"
        lines.append(
            f"| {row.method} | {ratio} | {row.n} | {interval} | {row.chain_tokens:.1f} | {row.actual_ratio:.2f} "
            f"| {row.cut_off} | {row.seconds_per_problem:.2f} |"
        )
    return "\n".join(lines)
