"""Methods x ratios -> requests -> graded predictions.

Every method answers the same problems through the same engine; they differ in prompt, adapter and
budget alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError, Prediction, PredictionKey, Problem
from tokenskip_lib.core.settings import EvaluationSettings, PromptSettings
from tokenskip_lib.inference.engine import Engine, Generation, Request
from tokenskip_lib.models.prompts import BASELINE_PROMPTS, build_prompt
from tokenskip_lib.models.tokens import CountTokens, batch_token_counter
from tokenskip_lib.problems.grading import is_correct, split_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


METHODS = ["original", "tokenskip", "truncation", *BASELINE_PROMPTS]
# These read a ratio; the others give one row.
RATIO_METHODS = {"tokenskip", "truncation", "lc_prompt"}


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


def truncation_budget(chain_tokens: Sequence[int], ratio: float) -> int:
    """The one budget, for all problems, under which the original's chains average `ratio` of their length.

    The smallest cap c with mean(min(length, c)) >= ratio * mean(length): truncation is compared at
    equal chain tokens, and what ends within the cap, its answer included, still finishes.

    Args:
        chain_tokens: the original's chain length of each problem, tokens.
        ratio: fraction of those tokens to spend.

    Raises:
        InputError: chains without a token.

    Source: TokenSkip's Truncation baseline caps max_new_tokens at a fraction of the original's
        budget; its published actual ratios (.95, .70, .49) are of the tokens really spent.
    """
    if not any(chain_tokens):
        raise InputError("evaluation.methods.truncation: the original's chains are empty, there is nothing to truncate")
    wanted = ratio * sum(chain_tokens)
    caps = range(1, max(chain_tokens) + 1)
    return caps[bisect_left(caps, wanted, key=lambda cap: sum(min(length, cap) for length in chain_tokens))]


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
            key=PredictionKey(problem.id, method, ratio),
            prompt=build_prompt(tokenizer, problem.question, prompts, method=method, ratio=ratio),
            max_new_tokens=max_new_tokens,
            adapter=adapter,
        )
        for problem in problems
    ]


def predict_all(
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
            grade_generation(
                by_id[g.key.id],
                g,
                max_new_tokens=budgets[g.key.method, g.key.ratio],
                count_tokens=count,
                layout=prompts.layout,
            )
            for g in batch
        ]


def grade_generation(
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
    _, method, ratio = generation.key
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
