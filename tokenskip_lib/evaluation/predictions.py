"""From methods to graded predictions: requests for an engine, and its answers graded and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from tokenskip_lib.core.records import Prediction, PredictionKey, Problem
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.evaluation.methods import find_method
from tokenskip_lib.inference.engine import Engine, Generation, Request
from tokenskip_lib.models.tokens import CountTokens, batch_token_counter
from tokenskip_lib.problems.grading import is_correct, split_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """One request a problem for a method at a ratio; its key is that of the Prediction.

    Args:
        adapter: the attached adapter that answers; None: the model as it is.
    """
    found = find_method(method)
    return [
        Request(
            key=PredictionKey(problem.id, method, ratio),
            prompt=found.build_prompt(tokenizer, problem.question, prompts, ratio),
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
    """Answer the problems by every method and ratio of a plan in one pass; yield graded batches.

    Args:
        plan: (method, ratio, max_new_tokens) of each.
        is_done: whether a prediction of this key is already on disk.
        label: of the progress bar.
        attached: whether the adapter is attached to the engine's model under the name `tokenskip`. Then
            only the methods that use the adapter switch it on.
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
            adapter="tokenskip" if attached and find_method(method).uses_adapter else None,
        )
    ]
    count = batch_token_counter(tokenizer)
    for batch in engine.generate(requests, is_done=is_done, label=label):
        graded = []
        for generation in batch:
            key = cast(PredictionKey, generation.key)
            graded.append(
                grade_generation(
                    by_id[key.id],
                    generation,
                    max_new_tokens=budgets[key.method, key.ratio],
                    count_tokens=count,
                    layout=prompts.layout,
                    answer_phrases=prompts.answer_phrases,
                )
            )
        yield graded


def grade_generation(
    problem: Problem,
    generation: Generation,
    *,
    max_new_tokens: int,
    count_tokens: CountTokens,
    layout: str = "answer",
    answer_phrases: Sequence[str] = (),
) -> Prediction:
    """Grade one answer. Chain tokens are counted up to the stated answer, by the same rule for every method.

    Args:
        generation: its key is the prediction's key (problem id, method, ratio).
        layout, answer_phrases: how an output states its answer, as in `split_output`.
    """
    parts = split_output(generation.text, layout, answer_phrases)
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
