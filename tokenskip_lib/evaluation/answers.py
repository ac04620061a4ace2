"""Answers as the Python API returns them: one for each question and ratio, graded where the gold answer is known."""

from __future__ import annotations

from typing import Any

from tokenskip_lib.core.records import Prediction, PredictionKey, Problem, Record
from tokenskip_lib.core.results import Records


class Answer(Record):
    """One answer of a model.

    `answer` is what the text states as its answer, or None. `gold` and `is_correct` are None if the
    question came without its gold answer. `tokens` counts the whole text, `chain_tokens` the chain.
    """

    question: str
    method: str
    ratio: float
    text: str
    chain: str
    answer: str | None
    gold: str | None
    is_correct: bool | None
    tokens: int
    chain_tokens: int
    cut_off: bool

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.id, self.method, self.ratio)


class Answers(Records[Answer]):
    """What a model answered: every question at every ratio."""

    def _cells(self, record: Answer) -> dict[str, Any]:
        names = ("id", "question", "ratio", "text", "answer", "gold", "is_correct", "tokens")
        return {name: getattr(record, name) for name in names}


def to_answer(prediction: Prediction, problem: Problem) -> Answer:
    """A graded prediction as an answer; a problem without a gold answer ("") leaves it ungraded."""
    graded = problem.answer != ""
    return Answer(
        id=prediction.id,
        question=problem.question,
        method=prediction.method,
        ratio=prediction.ratio,
        text=prediction.output,
        chain=prediction.chain,
        answer=prediction.prediction,
        gold=problem.answer if graded else None,
        is_correct=prediction.is_correct if graded else None,
        tokens=prediction.chain_tokens + prediction.answer_tokens,
        chain_tokens=prediction.chain_tokens,
        cut_off=prediction.cut_off,
    )
