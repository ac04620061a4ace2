"""Exact importance: packed and batched, against one plain row a version."""

import numpy as np
import pytest
import torch

from tests.pruning.test_target_scorers import encode, log_probs, prompt_ids
from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import answer_tail
from tokenskip_lib.pruning.deletion import MOST_SPANS, LeaveOneOutRestScorer, LeaveOneOutScorer, greedy_deletion
from tokenskip_lib.pruning.layout import Layout
from tokenskip_lib.pruning.spans import segment

TEXTS = [
    "Tom has 3 + 4 = 7 apples.", "He pays 7*2.5=17.5 dollars.\nSo 17.5.", "5 * 12 = 60", "one",
    "60 - 8 = 52\n\n52 pages", "Mary reads 12 pages a day.", "12 12 12 12", "a  b   c", "= = ==",
    "She has $3.50 and 1,200 more", "\\frac{1}{2} of 4 is 2", "é 漢字 don't", "So, so: so!", "7", "3 + 4\n= 7.",
    "2 * 2 = 4, 4 * 4 = 16", "x = 3", "The total is 9.", "9 apples and 9 pears", "Each costs 2.",
]  # fmt: skip


@pytest.fixture
def chains(problems, chain_of) -> list[ChainText]:
    return [chain_of(problems[n % 3].model_copy(update={"id": f"c{n}"}), text) for n, text in enumerate(TEXTS)]


@pytest.fixture(params=[None, 16], ids=["one pack", "several packs"])
def options(request) -> dict:
    return {"batch_tokens": request.param}


def answer_log_prob(model, tokenizer, chain: ChainText, text: str) -> float:
    """log p of the answer's own tokens: one row, no padding, no batch, no sharing."""
    tail = answer_tail(chain.answer)
    encoded = tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
    start = tail.rindex(chain.answer)
    own = [a < start + len(chain.answer) and b > start for a, b in encoded["offset_mapping"]]
    values = log_probs(model, prompt_ids(tokenizer, chain) + encode(tokenizer, text), encoded["input_ids"])
    return float(values[own].sum())


def without(text: str, left_out: list[int]) -> str:
    spans = segment(text)
    kept = [i for i in range(len(spans)) if i not in left_out]
    return Layout(text, spans).join(np.array(kept)) if kept else ""


def test_each_score_is_the_drop_of_the_answers_log_probability(chains, tiny_model, tiny_tokenizer, options):
    scored = LeaveOneOutScorer(tiny_model, tiny_tokenizer, PromptSettings(), **options).score(chains)
    assert len(scored) == 20 and any(abs(value) > 0.1 for chain in scored for value in chain.importance)
    for chain, found in zip(chains, scored, strict=True):
        whole = answer_log_prob(tiny_model, tiny_tokenizer, chain, chain.chain)
        drops = [
            whole - answer_log_prob(tiny_model, tiny_tokenizer, chain, without(chain.chain, [index]))
            for index in range(len(found.spans))
        ]
        assert found.importance == pytest.approx(drops, abs=1e-3)


def test_the_rest_is_all_after_the_gap_but_its_first_token(chains, tiny_model, tiny_tokenizer, options):
    chain = chains[0]
    ids, tail = encode(tiny_tokenizer, chain.chain), encode(tiny_tokenizer, answer_tail(chain.answer))
    before = prompt_ids(tiny_tokenizer, chain)
    whole = log_probs(tiny_model, before, ids + tail)
    [found] = LeaveOneOutRestScorer(tiny_model, tiny_tokenizer, PromptSettings(), **options).score([chain])
    compared = 0
    for index, (value, (_, end)) in enumerate(zip(found.importance, found.spans, strict=True)):
        text = without(chain.chain, [index])
        version, after = encode(tiny_tokenizer, text), encode(tiny_tokenizer, chain.chain[end:])
        if not after or version != ids[: len(version) - len(after)] + after:
            continue  # something is written otherwise next to the gap
        values, at = log_probs(tiny_model, before, version + tail), len(after) + len(tail)
        rest = (whole[-at:] - values[-at:])[1 : len(after)].sum()
        answers = [answer_log_prob(tiny_model, tiny_tokenizer, chain, each) for each in (chain.chain, text)]
        assert value == pytest.approx(rest + answers[0] - answers[1], abs=1e-3)
        compared += 1
    assert compared >= 4


def test_both_measurements_from_the_same_passes_are_those_of_each_scorer(chains, tiny_model, tiny_tokenizer):
    chains = [*chains, chains[0].model_copy(update={"id": "empty", "chain": ""})]
    both = LeaveOneOutRestScorer(tiny_model, tiny_tokenizer, PromptSettings()).score_both(chains)
    for place, scorer in enumerate((LeaveOneOutScorer, LeaveOneOutRestScorer)):
        alone = scorer(tiny_model, tiny_tokenizer, PromptSettings()).score(chains)
        for found, expected in zip(both[place::2], alone, strict=True):
            assert found.importance == pytest.approx(expected.importance, abs=1e-4)
            assert found.key == expected.key and found.spans == expected.spans


@pytest.mark.parametrize("text", ["Tom has 3 + 4 = 7.", "So 12 - 5 = 7 remain.", "It costs 6 * 2 = 12."])
def test_greedy_deletion_takes_the_cheapest_span_each_time(text, problems, chain_of, tiny_model, tiny_tokenizer):
    chain = chain_of(problems[0], text)
    scorer = LeaveOneOutScorer(tiny_model, tiny_tokenizer, PromptSettings())
    curve = greedy_deletion(scorer, chain)
    assert len(segment(chain.chain)) == 8 == len(curve.texts) == len(curve.answer_log_probs) == len(curve.removed) + 1
    gone: list[int] = []
    assert curve.texts[0] == chain.chain
    for step, index in enumerate(curve.removed):
        values = {
            i: answer_log_prob(tiny_model, tiny_tokenizer, chain, without(chain.chain, [*gone, i]))
            for i in range(8)
            if i not in gone
        }
        assert values[index] == pytest.approx(max(values.values()), abs=1e-3)
        gone.append(index)
        assert curve.texts[step + 1] == without(chain.chain, gone)
        assert curve.answer_log_probs[step + 1] == pytest.approx(values[index], abs=1e-3)


def test_what_cannot_be_measured_is_one_line(problems, chain_of, tiny_model, tiny_tokenizer):
    scorer = LeaveOneOutScorer(tiny_model, tiny_tokenizer, PromptSettings())
    long = chain_of(problems[0], " ".join(str(number) for number in range(MOST_SPANS + 1)))
    with pytest.raises(InputError, match="has 65 spans; greedy deletion takes chains of 64 at most"):
        greedy_deletion(scorer, long)
    with pytest.raises(InputError, match=r"^chain '[^']*': with question and answer it has \d+ tokens[^\n]*$"):
        scorer.score([chain_of(problems[0], "w" * 9000)])
    with pytest.raises(InputError, match="has no answer"):
        scorer.score([chain_of(problems[0]).model_copy(update={"answer": " "})])


def test_the_models_attention_is_as_it_was_afterwards(chains, tiny_model, tiny_tokenizer):
    before = tiny_model.config._attn_implementation
    row = torch.tensor([encode(tiny_tokenizer, TEXTS[0])])
    expected = tiny_model(input_ids=row).logits
    LeaveOneOutScorer(tiny_model, tiny_tokenizer, PromptSettings()).score(chains[:1])
    assert tiny_model.config._attn_implementation == before
    assert torch.equal(tiny_model(input_ids=row).logits, expected)
