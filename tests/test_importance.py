"""Importance: spans cover the text and break nothing, scores are the model's own whatever the batch."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.config import PromptSettings
from tokenskip_lib.importance import (
    SCORERS,
    WINDOW,
    RandomScorer,
    SelectiveContextScorer,
    average_over_spans,
    build_scorer,
    check_scorers,
    segment,
    span_kind,
    windows,
)
from tokenskip_lib.prompts import build_prompt
from tokenskip_lib.records import InputError

any_text = st.text(max_size=60) | st.text(alphabet="ab1 2.,'’\n\\${}=+-*_²½éÜß漢\t×", max_size=60)


@given(any_text)
def test_spans_cover_every_character_but_whitespace_exactly_once_in_order(text):
    spans = segment(text)
    covered = [position for start, end in spans for position in range(start, end)]
    assert covered == [position for position, character in enumerate(text) if not character.isspace()]
    assert all(start < end for start, end in spans)


@given(any_text)
def test_no_number_and_no_word_is_split(text):
    spans = segment(text)
    for whole in re.finditer(r"\d+(?:[.,]\d+)*|(?<!\\)\b[^\W\d_]+", text):
        assert any(start <= whole.start() and whole.end() <= end for start, end in spans), whole


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pays $3.50, not 1,200.", ["pays", "$", "3.50", ",", "not", "1,200", "."]),
        ("I don't know", ["I", "don't", "know"]),
        ("2x = \\frac{1}{2}", ["2x", "=", "\\frac", "{", "1", "}", "{", "2", "}"]),
        ("**So** 3 ... 4", ["**", "So", "**", "3", "...", "4"]),
        ("3+4=7\n\nDone", ["3", "+", "4", "=", "7", "Done"]),
        ("the dogs' 5%", ["the", "dogs", "'", "5", "%"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_a_text_is_cut_into_words_numbers_and_symbols(text, parts):
    assert [text[start:end] for start, end in segment(text)] == parts


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3.5", "number"),
        ("2x", "number"),
        ("+", "operator"),
        ("×", "operator"),
        ("\\times", "operator"),
        ("So", "connective"),
        ("Tom", "name"),
        ("apples", "word"),
        ("\\boxed", "word"),
        (".", "punctuation"),
        ("$", "punctuation"),
    ],
)
def test_spans_have_kinds(text, kind):
    assert span_kind(text) == kind


def test_a_spans_score_is_the_mean_over_its_tokens():
    # "abc de": one token straddles both spans, one is whitespace, one span has three tokens.
    spans = [(0, 3), (4, 6)]
    offsets = [(0, 1), (1, 3), (2, 5), (3, 4), (5, 6)]
    assert average_over_spans(spans, offsets, [1.0, 2.0, 6.0, 100.0, 8.0]) == [3.0, 7.0]


def test_a_span_without_a_token_is_refused():
    with pytest.raises(ValueError, match="characters 4-6"):
        average_over_spans([(0, 3), (4, 6)], [(0, 3)], [1.0])


def test_random_scores_depend_on_seed_and_chain_alone(problems, chain_of):
    chains = [chain_of(problem, "Tom has 3 apples.") for problem in problems]
    first = RandomScorer(0).score(chains)
    alone = [RandomScorer(0).score([chain])[0] for chain in reversed(chains)]
    assert first == alone[::-1]
    assert len({tuple(scored.importance) for scored in first}) == len(chains)  # same text, other ids
    other = RandomScorer(1).score(chains)
    assert all(a.importance != b.importance for a, b in zip(first, other, strict=True))
    assert all(0 <= value < 1 for scored in first for value in scored.importance)


@pytest.fixture(scope="module")
def scorer(tiny_model, tiny_tokenizer):
    return SelectiveContextScorer(tiny_model, tiny_tokenizer, PromptSettings())


def _surprisal_by_hand(model, tokenizer, chain):
    """-log p of each chain token after its prompt, one row, no padding; then a plain mean per span."""
    import torch

    prompt = build_prompt(tokenizer, chain.question, PromptSettings())
    encoded = tokenizer(chain.chain, add_special_tokens=False, return_offsets_mapping=True)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + encoded["input_ids"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    values = [-log_probs[position - 1, ids[0, position]].item() for position in range(len(before), ids.shape[1])]
    means = []
    for start, end in segment(chain.chain):
        inside = [v for v, (a, b) in zip(values, encoded["offset_mapping"], strict=True) if a < end and b > start]
        means.append(np.mean(inside))
    return means


def test_selective_context_is_the_surprisal_of_a_plain_forward_pass(
    scorer, tiny_model, tiny_tokenizer, problems, chain_of
):
    chains = [chain_of(problem) for problem in problems] + [
        chain_of(problems[0].model_copy(update={"id": "odd"}), "× é 漢字 don't\n\n1,200 $3.50 \\frac{1}{2}")
    ]
    for chain, scored in zip(chains, scorer.score(chains), strict=True):
        assert scored.importance == pytest.approx(_surprisal_by_hand(tiny_model, tiny_tokenizer, chain), abs=1e-4)


def test_scores_do_not_depend_on_the_batch(scorer, tiny_model, tiny_tokenizer, problems, chain_of):
    chains = [chain_of(p, p.solution * repeat) for repeat, p in enumerate(problems, 1)]
    together = scorer.score(chains)
    alone = [scorer.score([chain])[0] for chain in chains]
    one_row_batches = SelectiveContextScorer(tiny_model, tiny_tokenizer, PromptSettings(), batch_tokens=1).score(chains)
    for a, b, c in zip(together, alone, one_row_batches, strict=True):
        assert a.importance == pytest.approx(b.importance, abs=1e-4)
        assert a.importance == pytest.approx(c.importance, abs=1e-4)


def test_the_question_is_part_of_what_the_model_knows(scorer, problems, chain_of):
    [here] = scorer.score([chain_of(problems[0], "He has 7 apples.")])
    other = problems[0].model_copy(update={"question": "What is the capital of France?"})
    [elsewhere] = scorer.score([chain_of(other, "He has 7 apples.")])
    assert here.importance != pytest.approx(elsewhere.importance, abs=1e-3)


@pytest.mark.parametrize("name", SCORERS)
def test_scored_chains_come_in_the_order_they_went_in(name, tiny_model, tiny_tokenizer, problems, chain_of):
    scorer = build_scorer(name, model=tiny_model, tokenizer=tiny_tokenizer, prompts=PromptSettings(), seed=0)
    assert scorer.name == name
    chains = [chain_of(p, p.solution * (5 - index)) for index, p in enumerate(problems)]
    for order in (chains, chains[::-1]):
        scored = scorer.score(order)
        assert [s.id for s in scored] == [c.id for c in order]
        assert [s.text for s in scored] == [c.chain for c in order]
        for one in scored:
            assert one.scorer == name and one.spans == segment(one.text) and len(one.importance) == len(one.spans)


def test_windows_hold_every_chain_once_in_order(problems, chain_of):
    chains = [chain_of(problems[0].model_copy(update={"id": str(i)}), "x") for i in range(2 * WINDOW + 3)]
    cut = [list(window) for window in windows(chains)]
    assert [len(window) for window in cut] == [WINDOW, WINDOW, 3]
    assert [chain for window in cut for chain in window] == chains
    assert list(windows([])) == []


def test_an_unknown_scorer_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'selective_context'"):
        check_scorers(["random", "selective_contxt"])
    check_scorers(SCORERS)
