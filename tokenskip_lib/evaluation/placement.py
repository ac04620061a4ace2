"""Anyone's predictions as points beside the published rows: graded, counted, and compared where problems are shared.

The rule of the authors' code grades the answers, because it graded the published ones. Each row also has the accuracy
under strict grading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

import pandas as pd

from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.comparison import ComparisonRow, compare_methods, pair_outcomes
from tokenskip_lib.evaluation.input_forms import FORMS, GivenAnswer, read_answer, read_rows
from tokenskip_lib.evaluation.statistics import interval, resample, wilson
from tokenskip_lib.evaluation.tables import row_table
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.problems.grading import has_think_tags, is_correct, is_correct_by_reference, split_output
from tokenskip_lib.problems.gsm_symbolic import normalise_question

AGAIN = "another answer to a problem that was answered before"


@dataclass(frozen=True)
class PlacedAnswer:
    """One graded answer; `compare_methods` takes it for an outcome.

    Attributes:
        id: the problem's own; "" if the row has none.
        question: with single spaces; "" if the row shows none.
        method: the name of the answer's curve.
        ratio: 1.0 if the row names none, which `states_ratio` tells.
        is_correct: by the rule of the authors' code.
        strictly: whether strict grading agrees that it is right.
        states_none: whether the output states no answer.
    """

    id: str
    question: str
    gold: str
    method: str
    ratio: float
    states_ratio: bool
    is_correct: bool
    strictly: bool
    states_none: bool
    chain_tokens: int


@dataclass(frozen=True)
class PlacedRow:
    """One point: the ledger's columns, then what the ledger does not hold.

    Attributes:
        ratio: None if no answer of this point states one.
        accuracy: percent, by the rule of the authors' code, with its 95% Wilson interval.
        tokens: chain tokens, mean over problems, with its 95% bootstrap interval.
        source: the file.
        accuracy_strict: percent, strictly graded.
        no_answer: outputs that state no answer.
        counted_by: what counted the tokens.
    """

    tested_on: str
    method: str
    ratio: float | None
    n: int
    accuracy: float
    tokens: float
    source: str
    accuracy_low: float
    accuracy_high: float
    accuracy_strict: float
    tokens_low: float
    tokens_high: float
    no_answer: int
    counted_by: str


def read_answers(source: str) -> tuple[list[GivenAnswer], Counter[str]]:
    """The answers of a file, and how many of its rows were dropped for which reason.

    Of several answers to one problem (samples, or one answer under two filters of lm-eval) the first is taken.

    Raises:
        InputError: no such file, a line that is not JSON, or nothing that can be graded.
    """
    answers: list[GivenAnswer] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple] = set()
    for _, row in read_rows(source):
        given = read_answer(row)
        if isinstance(given, str):
            dropped[given] += 1
            continue
        problem = given.id or normalise_question(given.question)
        key = (problem, given.method, given.ratio)
        if problem and key in seen:
            dropped[AGAIN] += 1
            continue
        seen.add(key)
        answers.append(given)
        if given.further:
            dropped[AGAIN] += given.further
    if not answers:
        raise InputError(f"{source}: no row that can be graded ({_reasons(dropped) or 'it is empty'}); {FORMS}")
    return answers, dropped


def say_dropped(source: str, dropped: Counter[str]) -> str:
    """What was dropped of a file, rows and samples in rows, as one line.

    Example:
        >>> say_dropped("mine.jsonl", Counter({"no 'answer' that is a text or a number": 2}))
        "mine.jsonl: 2 answers dropped (2: no 'answer' that is a text or a number)"
    """
    return f"{source}: {dropped.total()} answer{'s' * (dropped.total() != 1)} dropped ({_reasons(dropped)})"


def say_tagged(source: str, answers: Sequence[GivenAnswer], layout: str) -> str:
    """A line if outputs have <think> tags and the layout does not read them; else "".

    Example:
        >>> given = GivenAnswer("1", "", "7", "<think>3 + 4</think>It is 7.", "", 1.0, None)
        >>> say_tagged("mine.jsonl", [given], "answer")
        "mine.jsonl: 1 of 1 outputs have <think> tags, which the layout 'answer' counts as words; use --layout think"
    """
    tagged = sum(has_think_tags(answer.output) for answer in answers) if layout == "answer" else 0
    if not tagged:
        return ""
    said = "outputs have <think> tags, which the layout 'answer' counts as words; use --layout think"
    return f"{source}: {tagged} of {len(answers)} {said}"


def grade_answers(
    given: Sequence[GivenAnswer],
    name: str,
    count_tokens: CountTokens | None,
    layout: str,
    answer_phrases: Sequence[str] = (),
) -> list[PlacedAnswer]:
    """Grade a file's answers and count their chains.

    Args:
        name: of the file. Where its rows name methods, a curve's name is this and the method.
        count_tokens: None takes the counts that the rows bring.
        layout, answer_phrases: as in `split_output`.
    """
    parts = [split_output(answer.output, layout, answer_phrases) for answer in given]
    if count_tokens is None:
        counts: Sequence[int] = [answer.chain_tokens or 0 for answer in given]
    else:
        own = count_tokens([split.chain.rstrip() for split in parts])
        counts = [tokens + answer.first_call_tokens for tokens, answer in zip(own, given, strict=True)]
    return [
        PlacedAnswer(
            id=answer.id,
            question=normalise_question(answer.question),
            gold=answer.gold,
            method=f"{name}: {answer.method}" if answer.method else name,
            ratio=1.0 if answer.ratio is None else answer.ratio,
            states_ratio=answer.ratio is not None,
            is_correct=is_correct_by_reference(answer.output, answer.gold),
            strictly=is_correct(split.prediction, answer.gold),
            states_none=split.prediction is None,
            chain_tokens=tokens,
        )
        for answer, split, tokens in zip(given, parts, counts, strict=True)
    ]


def curves(answers: Iterable[PlacedAnswer]) -> dict[tuple[str, float], list[PlacedAnswer]]:
    """The answers of each (method, ratio), in the order in which they come."""
    grouped: dict[tuple[str, float], list[PlacedAnswer]] = {}
    for point, group in groupby(answers, key=attrgetter("method", "ratio")):
        grouped.setdefault(point, []).extend(group)
    return grouped


def placed_rows(answers: Sequence[PlacedAnswer], *, tested_on: str, source: str, counted_by: str) -> list[PlacedRow]:
    """A row for each method and ratio of one file."""
    rows = []
    for (method, ratio), group in curves(answers).items():
        n, lengths = len(group), [answer.chain_tokens for answer in group]
        right = sum(answer.is_correct for answer in group)
        low, high = wilson(right, n)
        tokens_low, tokens_high = interval(resample(n, 0) @ lengths / n)
        rows.append(
            PlacedRow(
                tested_on=tested_on,
                method=method,
                ratio=ratio if any(answer.states_ratio for answer in group) else None,
                n=n,
                accuracy=round(100 * right / n, 2),
                tokens=round(sum(lengths) / n, 2),
                source=source,
                accuracy_low=round(100 * low, 2),
                accuracy_high=round(100 * high, 2),
                accuracy_strict=round(100 * sum(answer.strictly for answer in group) / n, 2),
                tokens_low=round(tokens_low, 2),
                tokens_high=round(tokens_high, 2),
                no_answer=sum(answer.states_none for answer in group),
                counted_by=counted_by,
            )
        )
    return rows


def pair_with_first(answers: Sequence[PlacedAnswer]) -> tuple[pd.DataFrame, list[str]]:
    """Every later method and ratio against the first, on the problems that both answer.

    Problems are the same if their questions are, or, where a file shows no questions or they do not match, their ids.

    Returns:
        The columns of ComparisonRow, and a line for each that could not be paired.
    """
    tables, notes = [row_table([], ComparisonRow)], []
    (base, first), *others = curves(answers).items()
    for point, second in others:
        pairs = _shared(first, second)
        if differing := next((a.gold for a, b in pairs if not is_correct(a.gold, b.gold)), None):
            notes.append(f"{point[0]}: not paired with {base[0]}, since gold answers differ (one is {differing!r})")
        elif not pairs:
            notes.append(f"{point[0]}: not paired with {base[0]}, since no question or id is in both")
        else:
            if left_out := min(len(first), len(second)) - len(pairs):
                notes.append(f"{point[0]}: {left_out} answers have no partner in {base[0]}, or share a question")
            # One id for both: the question is what tells problems apart, whatever their ids are.
            both = [replace(answer, id=str(number)) for number, pair in enumerate(pairs) for answer in pair]
            tables.append(compare_methods(pair_outcomes([both], base=base), against=base))
    return pd.concat([table for table in tables if len(table)] or tables), notes


def _shared(first: Iterable[PlacedAnswer], second: Iterable[PlacedAnswer]) -> list[tuple[PlacedAnswer, PlacedAnswer]]:
    """The answers of both to the same problems, side by side."""
    for name in ("question", "id"):
        ours, theirs = ({getattr(a, name): a for a in group if getattr(a, name)} for group in (first, second))
        if common := [key for key in ours if key in theirs]:
            return [(ours[key], theirs[key]) for key in common]
    return []


def _reasons(dropped: Counter[str]) -> str:
    return "; ".join(f"{count}: {reason}" for reason, count in dropped.most_common())
