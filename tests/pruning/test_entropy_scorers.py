"""Scores from the target model's uncertainty: each against a plain computation of one unpadded row."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tokenskip_lib.core.records import ChainText
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import build_prompt
from tokenskip_lib.pruning.gogi_skip_scorer import GoGISkipScorer
from tokenskip_lib.pruning.gradient_scorers import GoGIScorer
from tokenskip_lib.pruning.prune import prune_steps
from tokenskip_lib.pruning.target_scorers import EntropyScorer, token_entropies

both = pytest.mark.parametrize("scorer_class", [EntropyScorer, GoGISkipScorer], ids=["entropy", "gogi_skip"])


@pytest.fixture
def chains(problems, chain_of) -> list[ChainText]:
    odd = problems[0].model_copy(update={"id": "odd"})
    return [*map(chain_of, problems), chain_of(odd, " × é 漢字 don't\n\n1 200 $3.50 \\frac{1}{2}\n")]


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def entropies(model, tokenizer, chain: ChainText) -> np.ndarray:
    """Of the prediction of each token of the chain: one row, no padding, no batch, in float64."""
    before = encode(tokenizer, build_prompt(tokenizer, chain.question, PromptSettings()))
    ids = encode(tokenizer, chain.chain)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([before + ids])).logits[0].double()
    log_probs = torch.log_softmax(logits, -1)
    plain = -(log_probs.exp() * log_probs).sum(-1)
    return plain[len(before) - 1 : len(before) + len(ids) - 1].numpy()


def test_a_spans_entropy_is_the_sum_over_its_tokens_and_no_token_is_lost(tiny_model, tiny_tokenizer, chains):
    scorer = EntropyScorer(tiny_model, tiny_tokenizer, PromptSettings())
    for chain, scored in zip(chains, scorer.score(chains), strict=True):
        plain = entropies(tiny_model, tiny_tokenizer, chain)
        assert (plain > 0).all() and sum(scored.importance) == pytest.approx(plain.sum(), rel=1e-4)
        offsets = tiny_tokenizer(chain.chain, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for (start, end), value in zip(scored.spans, scored.importance, strict=True):
            inside = [h for h, (a, b) in zip(plain, offsets, strict=True) if start <= a and b <= end]
            assert value >= sum(inside) - 1e-3  # a token of whitespace may add to it


def test_the_entropy_is_that_of_the_distribution_and_at_most_the_logarithm_of_its_size():
    logits = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [9.0, -torch.inf, -torch.inf, -torch.inf], [1.0, 1.0, -torch.inf, 1.0]]
    )
    assert token_entropies(logits, [0, 0, 0]).tolist() == pytest.approx([np.log(4), 0.0, np.log(3)])
    assert token_entropies(logits[:0], []).tolist() == []


def test_a_steps_sum_is_the_entropy_of_its_tokens(tiny_model, tiny_tokenizer, problems, chain_of):
    lines = ["Tom has 3 + 4 = 7 apples.\n\n", "So he has 7.\n\n", "He pays 7*2.5=17.5 dollars."]
    chain = chain_of(problems[0], "".join(lines))
    plain = entropies(tiny_model, tiny_tokenizer, chain)
    offsets = tiny_tokenizer(chain.chain, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    bounds = np.cumsum([0, *map(len, lines)])
    sums = [sum(h for h, (a, _) in zip(plain, offsets, strict=True) if x <= a < y) for x, y in pairwise(bounds)]
    [scored] = EntropyScorer(tiny_model, tiny_tokenizer, PromptSettings()).score([chain])
    own = [
        sum(score for score, (a, _) in zip(scored.importance, scored.spans, strict=True) if x <= a < y)
        for x, y in pairwise(bounds)
    ]
    assert own == pytest.approx(sums, rel=1e-4)
    [pruned] = prune_steps([scored], [1e-6], count_tokens=lambda texts: [len(text) for text in texts])
    assert pruned.text == lines[int(np.argmax(sums))].strip()


def test_gogi_skip_keeps_what_passes_a_threshold_of_its_own_for_each_token(tiny_model, tiny_tokenizer, chains):
    settings = (tiny_model, tiny_tokenizer, PromptSettings())
    ids = [encode(tiny_tokenizer, chain.chain) for chain in chains]
    scores = GoGISkipScorer(*settings).token_scores(chains, ids)
    gradients = GoGIScorer(*settings).token_scores(chains, ids)
    for chain, score, gradient in zip(chains, scores, gradients, strict=True):
        share = np.array([(gradient < g).mean() + (gradient == g).mean() / 2 for g in gradient])
        for base in (0.1, 0.3, 0.6):
            kept_share = base + 0.5 * (1 - np.exp(-entropies(tiny_model, tiny_tokenizer, chain)))
            sure = np.abs(share - (1 - kept_share)) > 1e-4
            assert ((share >= 1 - kept_share) == (score >= 1 - base))[sure].all()


@both
def test_scores_do_not_depend_on_the_batch(scorer_class, tiny_model, tiny_tokenizer, problems, chain_of):
    chains = [chain_of(p, p.solution * repeat) for repeat, p in enumerate(problems, 1)]
    scorer = scorer_class(tiny_model, tiny_tokenizer, PromptSettings())
    together = scorer.score(chains)
    alone = [scorer.score([chain])[0] for chain in reversed(chains)][::-1]
    for a, b in zip(together, alone, strict=True):
        assert a.importance == pytest.approx(b.importance, rel=1e-3, abs=1e-3)


@both
def test_a_chain_longer_than_the_models_context_is_scored_to_its_end(scorer_class, tiny_model, tiny_tokenizer):
    text = " ".join(f"Step {i}: Tom has {i} apples, so {i} + {i % 7} = {i + i % 7}." for i in range(120))
    chain = ChainText(id="long", question="How many apples has Tom?", answer="81", chain=text)
    assert len(encode(tiny_tokenizer, text)) > 2 * 1024
    [scored] = scorer_class(tiny_model, tiny_tokenizer, PromptSettings()).score([chain])
    assert np.isfinite(scored.importance).all() and len(set(scored.importance[-40:])) > 20
