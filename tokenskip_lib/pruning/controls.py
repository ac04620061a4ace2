"""Importance: how much each part of a chain of thought matters. Every published score by its name.

The scores of models are in `target_scores` and `llmlingua2`; here are the controls, your own, and
the list of all. Scores live on character spans of the chain's text (`spans`).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.pruning.spans import Segmenter, average_over_spans, build_scored_chain, segment


class Scorer(Protocol):
    """What every scorer does: chains in, scored chains out, in the same order, higher is kept.

    `score` takes one window of chains; batches depend on that window alone, so the same chains get
    the same scores in a resumed run.
    """

    name: str
    reads: tuple[str, ...]  # which of "question" and "answer" it cannot do without

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]: ...


class RandomScorer:
    """The control: uniform scores in [0, 1), the same for the same chain id and seed."""

    name = "random"
    reads = ()

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
        function: chains -> scores, one for each span of `segment(chain.chain)`. Where the scorer's own
            spans are wider (importance.whole_latex), each takes the mean of those inside it.

    Raises:
        InputError: on scoring, where the function returns another number of lists or scores.
    """

    reads = ()

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[ChainText]], Sequence[Sequence[float]]],
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
    """The other control, `position`: the earlier, the more important (1 down to 0), so pruning cuts off the end."""
    return [np.linspace(1, 0, len(segment(chain.chain))).tolist() for chain in window]
