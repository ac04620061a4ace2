"""Pruning: the most important part is kept, in order, at the ratio asked for, and nothing is glued."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.importance import segment
from tokenskip_lib.pruning import join_spans, prune
from tokenskip_lib.records import ScoredChain

LONG = (
    "First, Tom has 88 apples and gives half of them away, so he gives 88/2 = 44 apples.\n"
    "Then he buys 3 boxes of 12 apples each, which is 3 * 12 = 36 apples.\n\n"
    "So he has 44 + 36 = 80 apples.\nHe sells each for $0.50, so he earns 80 * 0.5 = 40 dollars in all.\n"
) * 3


def _spans(text: str) -> int:
    """A counter for which one span is one token, so that the ratio can be met exactly."""
    return len(segment(text))


def _scored(text: str, importance=None) -> ScoredChain:
    spans = segment(text)
    if importance is None:
        importance = np.random.default_rng(len(text)).random(len(spans)).tolist()
    return ScoredChain(id="a", scorer="s", text=text, spans=spans, importance=list(importance)[: len(spans)])


part = st.sampled_from(["Tom", "don't", "88", "3.5", "1,200", "2x", "\\frac", "é", "漢字"]) | st.sampled_from(
    ["/", "=", "==", "**", ".", "...", ",", "$", "{", "}", "'", "_", "-", "\\", "\\\\", "½"]
)
gap = st.sampled_from(["", " ", " ", "  ", "\n", "\n\n", " \n ", "\t"])
raw_text = st.lists(st.tuples(part, gap), min_size=1, max_size=25).map(lambda pairs: "".join(a + b for a, b in pairs))
a_text = (raw_text | st.text(min_size=1, max_size=40)).filter(segment)
a_score = st.integers(0, 5).map(float) | st.floats(-10, 10)
a_ratio = st.floats(0.01, 1.0)


@st.composite
def a_chain(draw, texts=a_text):
    text = draw(texts)
    count = len(segment(text))
    return _scored(text, draw(st.lists(a_score, min_size=count, max_size=count)))


def _parts(text: str) -> list[str]:
    return [text[start:end] for start, end in segment(text)]


@given(a_chain(), a_ratio)
def test_kept_indices_ascend_and_belong_to_the_chain(chain, ratio):
    pruned = prune(chain, ratio, count_tokens=_spans)
    assert pruned.kept == sorted(set(pruned.kept)) and pruned.kept
    assert set(pruned.kept) <= set(range(len(chain.spans)))
    assert (pruned.id, pruned.scorer, pruned.ratio) == (chain.id, chain.scorer, ratio)


@given(a_chain(), a_ratio)
def test_the_pruned_text_has_exactly_the_kept_parts_and_none_is_glued(chain, ratio):
    pruned = prune(chain, ratio, count_tokens=_spans)
    assert _parts(pruned.text) == [chain.text[slice(*chain.spans[index])] for index in pruned.kept]


@given(a_chain())
def test_at_1_the_text_is_the_original_to_the_byte(chain):
    pruned = prune(chain, 1.0, count_tokens=_spans)
    assert pruned.text == chain.text
    assert pruned.kept == list(range(len(chain.spans))) and pruned.actual_ratio == 1.0


@given(a_chain(), a_ratio)
def test_what_is_kept_is_never_less_important_than_what_is_skipped(chain, ratio):
    pruned = prune(chain, ratio, count_tokens=_spans)
    skipped = set(range(len(chain.spans))) - set(pruned.kept)
    if skipped:
        assert min(chain.importance[i] for i in pruned.kept) >= max(chain.importance[i] for i in skipped)


@given(a_chain(), a_ratio)
def test_of_two_equally_important_spans_the_earlier_is_kept(chain, ratio):
    kept = set(prune(chain, ratio, count_tokens=_spans).kept)
    for later in kept:
        for earlier in range(later):
            assert earlier in kept or chain.importance[earlier] != chain.importance[later]


@given(a_chain(), a_ratio)
def test_the_number_kept_is_the_ratio_where_a_span_is_a_token(chain, ratio):
    pruned = prune(chain, ratio, count_tokens=_spans)
    assert pruned.tokens == max(1, round(ratio * len(chain.spans))) == len(pruned.kept)
    assert pruned.original_tokens == len(chain.spans)


@given(a_chain(), a_ratio, a_ratio)
def test_a_higher_ratio_keeps_all_that_a_lower_one_keeps(chain, one, other):
    low, high = sorted((one, other))
    fewer, more = (prune(chain, ratio, count_tokens=_spans) for ratio in (low, high))
    assert set(fewer.kept) <= set(more.kept)
    assert fewer.tokens <= more.tokens


def test_the_ratio_keeps_the_top_and_not_the_bottom():
    # The inversion of a fork: a quantile at `ratio` from below keeps 1 - ratio, and the least important.
    chain = _scored("a b c d e f g h i j", range(10))
    assert prune(chain, 0.3, count_tokens=_spans).text == "h i j"
    assert prune(chain, 0.9, count_tokens=_spans).text == "b c d e f g h i j"


def test_half_of_a_real_chain_is_more_important_than_the_other_half(tiny_tokenizer):
    chain = _scored(LONG)
    pruned = prune(chain, 0.5, count_tokens=lambda text: len(tiny_tokenizer(text)["input_ids"]))
    kept = np.isin(np.arange(len(chain.spans)), pruned.kept)
    importance = np.array(chain.importance)
    assert importance[kept].mean() > importance[~kept].mean()
    assert 0.3 < kept.mean() < 0.7


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_ratio_is_met_in_the_target_models_tokens(real_tokenizer, ratio):
    def count(text):
        return len(real_tokenizer(text, add_special_tokens=False)["input_ids"])

    pruned = prune(_scored(LONG), ratio, count_tokens=count)
    assert pruned.tokens == count(pruned.text) and pruned.original_tokens == count(LONG)
    assert abs(pruned.tokens - ratio * pruned.original_tokens) <= 2


def test_tokens_grow_with_the_ratio(real_tokenizer):
    def count(text):
        return len(real_tokenizer(text, add_special_tokens=False)["input_ids"])

    tokens = [prune(_scored(LONG), ratio / 20, count_tokens=count).tokens for ratio in range(1, 21)]
    assert tokens == sorted(tokens) and tokens[0] < tokens[-1] == count(LONG)


@given(
    a_chain(st.sampled_from(["Half of 88 is 88/2 = 44.", "x 0.8", "x0 0.8 8", "88 88\n88/88", "$5*2=$10, 5%."])),
    a_ratio,
)
def test_numbers_whose_operator_is_left_out_stay_apart(chain, ratio):
    text = prune(chain, ratio, count_tokens=_spans).text
    assert set(_parts(text)) <= set(_parts(chain.text))
    assert not any(glued in text for glued in ("8888", "882", "8844", "x08", "x0.8"))


def test_the_two_cases_that_glued_in_the_pilot():
    spread = "He has 88 apples. Half is 88/2 = 44."
    low = {"/", "=", "."}
    chain = _scored(spread, [0.0 if word in low else 1.0 for word in _parts(spread)])
    ratio = sum(chain.importance) / len(chain.importance)
    assert prune(chain, ratio, count_tokens=_spans).text == "He has 88 apples Half is 88 2 44"
    assert prune(_scored("x × 0.8", [1, 0, 1]), 2 / 3, count_tokens=_spans).text == "x 0.8"


@given(a_chain(), a_ratio)
def test_a_line_break_between_two_kept_spans_survives_as_one(chain, ratio):
    pruned = prune(chain, ratio, count_tokens=_spans)
    written = segment(pruned.text)
    for position in range(1, len(pruned.kept)):
        before, after = pruned.kept[position - 1], pruned.kept[position]
        left_out = chain.text[chain.spans[before][1] : chain.spans[after][0]]
        between = pruned.text[written[position - 1][1] : written[position][0]]
        assert ("\n" in left_out) == ("\n" in between)
        if after == before + 1:
            assert between == left_out


def test_lines_and_paragraphs_stay_apart():
    text = "One is here.\nTwo is there.\n\nThree is nowhere."
    chain = _scored(text, [word in ("One", "Two", "Three") for word in _parts(text)])
    assert prune(chain, 3 / len(chain.spans), count_tokens=_spans).text == "One\nTwo\n\nThree"


def test_neighbours_keep_what_was_between_them():
    text = "$18  per \\frac{1}{2}"
    assert join_spans(text, segment(text), list(range(len(segment(text))))) == text
    assert join_spans(text, segment(text), [0, 1, 3, 4, 5, 6]) == "$18 \\frac{1}"
    assert join_spans(text, segment(text), []) == ""


def test_one_word_is_kept_at_every_ratio():
    assert prune(_scored("Seven"), 0.1, count_tokens=_spans).text == "Seven"


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        prune(_scored("a b"), ratio, count_tokens=_spans)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused(ratio, score):
    with pytest.raises(ValueError, match="not finite"):
        prune(_scored("a b c", [1.0, score, 2.0]), ratio, count_tokens=_spans)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_chain_is_refused(text):
    with pytest.raises(ValueError, match="empty"):
        prune(_scored(text), 0.5, count_tokens=_spans)


def test_a_chain_with_a_score_missing_is_refused():
    with pytest.raises(ValueError, match="3 spans, 2 scores"):
        prune(_scored("a b c", [1.0, 2.0]), 0.5, count_tokens=_spans)
