"""Pruned chains and training rows that the tests of training share."""

import pytest

from tokenskip_lib.core.records import PrunedChain
from tokenskip_lib.core.settings import PromptSettings, PruningSettings
from tokenskip_lib.training.rows import build_sft_rows


@pytest.fixture
def pruned_of():
    """A function problem, ratio -> its solution as a chain at that ratio."""

    def make(problem, ratio=0.5) -> PrunedChain:
        return PrunedChain(
            id=problem.id, scorer="s", ratio=ratio, text=problem.solution, kept=[0], tokens=5, original_tokens=10
        )

    return make


@pytest.fixture
def rows(problems, pruned_of, tiny_tokenizer):
    """A training row for each problem, the first at the first ratio and so on; two of the five are held out."""
    chains = [pruned_of(problem, ratio) for problem, ratio in zip(problems, PruningSettings().ratios, strict=False)]
    by_id = {problem.id: problem for problem in problems}
    return build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=0.4, seed=0)
