"""Scores without a model: the controls, and your own functions.

The scorers that need a model are in `target_scorers`, `gradient_scorers` and `llmlingua2_scorer`, and the list of all
is in `registry`. Scores are numbers for character spans of the chain's text (`spans`).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.pruning.spans import Scores, Segmenter, average_over_spans, build_scored_chain, segment

# Your own score: chains -> one list of scores a chain, one score for each span of `segment(chain.chain)`.
ScoreFunction = Callable[[Sequence[ChainText]], Iterable[Scores]]


class Scorer(Protocol):
    """What every scorer does: chains in, scored chains out, in the same order. Spans with high scores are kept.

    `score` takes one window of chains. Batches depend on that window alone, so the same chains get
    the same scores in a resumed run.
    """

    name: str

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]: ...


class RandomScorer:
    """The control: uniform scores in [0, 1), the same for the same chain id and seed."""

    name = "random"

    def __init__(self, seed: int, *, segmenter: Segmenter = segment):
        self.seed = seed
        self.segment = segmenter

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        scored = []
        for chain in window:
            spans = self.segment(chain.chain)
            digest = hashlib.sha256(f"{self.seed}:{chain.id}".encode()).digest()
            values = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(spans))
            scored.append(build_scored_chain(chain, self.name, spans, values))
        return scored


class FunctionScorer:
    """Your own score: a function from chains to one list of scores a chain, one score a span.

    Args:
        function: chains -> scores, one for each span of `segment(chain.chain)`. If the scorer's own
            spans are wider (importance.whole_latex), each takes the mean of the spans inside it.

    `score` raises InputError if the function returns another number of lists or scores.
    """

    def __init__(
        self,
        name: str,
        function: ScoreFunction,
        *,
        segmenter: Segmenter = segment,
    ):
        self.name = name
        self.function = function
        self.segment = segmenter

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        values = list(self.function(window))
        if len(values) != len(window):
            raise InputError(f"scorer '{self.name}': {len(values)} lists of scores for {len(window)} chains")
        scored = []
        for chain, importance in zip(window, values, strict=True):
            parts, spans = segment(chain.chain), self.segment(chain.chain)
            if len(importance) != len(parts):
                raise InputError(
                    f"scorer '{self.name}', chain '{chain.id}': {len(importance)} scores for {len(parts)} spans; "
                    "give one score for each span of segment(chain.chain)"
                )
            importance = importance if spans == parts else average_over_spans(spans, parts, importance)
            scored.append(build_scored_chain(chain, self.name, spans, importance))
        return scored


def keep_first(window: Sequence[ChainText]) -> list[list[float]]:
    """The other control, `position`: scores fall from 1 to 0 along the chain, so pruning cuts off its end.

    Example:
        >>> keep_first([ChainText(id="a", chain="one two three")])
        [[1.0, 0.5, 0.0]]
    """
    return [np.linspace(1, 0, len(segment(chain.chain))).tolist() for chain in window]
