"""From methods to graded predictions: requests for an engine, and its answers graded and counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from tokenskip_lib.core.records import FirstCall, Prediction, PredictionKey, Problem
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.evaluation.method import Known
from tokenskip_lib.evaluation.methods import find_method
from tokenskip_lib.inference.engine import Engine, Generation, Request
from tokenskip_lib.models.tokens import CountTokens, batch_token_counter
from tokenskip_lib.problems.grading import is_correct, split_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STATED_BUDGET = re.compile(r"\[\[(\d{1,9})\]\]")  # the form that a first call asks for


def build_requests(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    *,
    method: str,
    ratio: float,
    max_new_tokens: int,
    adapter: str | None = None,
    known: Known | None = None,
    first: Mapping[tuple, FirstCall] | None = None,
) -> list[Request]:
    """One request a problem for a method at a level; its key is that of the Prediction.

    Args:
        ratio: the method's level.
        adapter: the attached adapter that answers; None: the model as it is.
        known: what a method that follows the original or scales the adapter must know.
        first: the first call of each key, for a method that calls twice.

    Raises:
        ValueError: something that the method must know is missing.
    """
    found = find_method(method)
    requests = []
    for problem in problems:
        key, budget = PredictionKey(problem.id, method, ratio), None
        if found.first_request:
            if first is None or key not in first:
                raise ValueError(f"'{method}' has not had its first call for problem '{problem.id}'")
            budget = first[key].budget
        prompt = found.build_prompt(tokenizer, problem.question, prompts, ratio, known, budget)
        requests.append(Request(key=key, prompt=prompt, max_new_tokens=max_new_tokens, adapter=adapter))
    return requests


def call_first(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: PromptSettings,
    pairs: Sequence[tuple[str, float]],
    *,
    max_new_tokens: int,
    is_done: Callable[[tuple], bool] = lambda _: False,
    label: str,
) -> Iterator[list[FirstCall]]:
    """The first calls of methods that call twice, batch by batch.

    Args:
        pairs: (method, level) of each. Methods that call once are left out.
        is_done: whether a first call of this key is already on disk.
    """
    requests = [
        Request(
            key=PredictionKey(problem.id, method, level),
            prompt=find_method(method).build_first_prompt(tokenizer, problem.question, prompts),
            max_new_tokens=max_new_tokens,
        )
        for method, level in pairs
        if find_method(method).first_request
        for problem in problems
    ]
    if not requests:
        return
    for batch in engine.generate(requests, is_done=is_done, label=label):
        yield [_read_first(generation) for generation in batch]


def _read_first(generation: Generation) -> FirstCall:
    problem_id, method, ratio = generation.key
    stated = _STATED_BUDGET.search(generation.text)
    return FirstCall(
        id=problem_id,
        method=method,
        ratio=ratio,
        output=generation.text,
        budget=int(stated[1]) if stated else None,
        tokens=generation.tokens,
        cut_off=generation.cut_off,
        seconds=round(generation.seconds, 4),
    )


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
    known: Known | None = None,
    first: Mapping[tuple, FirstCall] | None = None,
) -> Iterator[list[Prediction]]:
    """Answer the problems by every method and level of a plan in one pass; yield graded batches.

    Args:
        plan: (method, level, max_new_tokens) of each.
        is_done: whether a prediction of this key is already on disk.
        label: of the progress bar.
        attached: whether the adapter is attached to the engine's model under the name `tokenskip`. Then
            only the methods that use the adapter switch it on.
        known: as in `build_requests`.
        first: as in `build_requests`.
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
            adapter="tokenskip" if attached and find_method(method).strength(ratio) else None,
            known=known,
            first=first,
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
                    first=first.get(key) if first else None,
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
    first: FirstCall | None = None,
    answer_phrases: Sequence[str] = (),
) -> Prediction:
    """Grade one answer. Chain tokens are counted up to the stated answer, by the same rule for every method.

    Args:
        generation: its key is the prediction's key (problem id, method, ratio).
        first: the first call that came before it. Its tokens were spent on this answer: they count as chain tokens.
        layout, answer_phrases: how an output states its answer, as in `split_output`.
    """
    parts = split_output(generation.text, layout, answer_phrases)
    _, method, ratio = generation.key
    chain_tokens, answer_tokens = count_tokens([parts.chain.rstrip(), parts.answer])
    spent, seconds = (first.tokens, first.seconds) if first else (0, 0.0)
    return Prediction(
        id=problem.id,
        method=method,
        ratio=ratio,
        answer=problem.answer,
        output=generation.text,
        chain=parts.chain,
        prediction=parts.prediction,
        is_correct=is_correct(parts.prediction, problem.answer),
        chain_tokens=spent + chain_tokens,
        answer_tokens=answer_tokens,
        max_new_tokens=max_new_tokens,
        cut_off=generation.cut_off,
        seconds=round(seconds + generation.seconds, 4),
        first_call_tokens=spent,
    )
