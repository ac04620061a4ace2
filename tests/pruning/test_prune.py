"""Pruning: the most important part is kept, in order, at the ratio asked for, and nothing is glued."""

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.layout import Layout
from tokenskip_lib.pruning.prune import prune, prune_many
from tokenskip_lib.pruning.spans import segment, span_kind

LONG = (
    "First, Tom has 88 apples and gives half of them away, so he gives 88/2 = 44 apples.\n"
    "Then he buys 3 boxes of 12 apples each, which is 3 * 12 = 36 apples.\n\n"
    "So he has 44 + 36 = 80 apples.\nHe sells each for $0.50, so he earns 80 * 0.5 = 40 dollars in all.\n"
) * 3


def _spans(texts: Sequence[str]) -> list[int]:
    """A counter for which one span is one token, so that the ratio can be met exactly."""
    return [len(segment(text)) for text in texts]


def _digits(texts: Sequence[str]) -> list[int]:
    """A counter for which a number is as many tokens as it has characters, anything else one."""
    return [sum(_cost(text[start:end]) for start, end in segment(text)) for text in texts]


def _cost(piece: str) -> int:
    return len(piece) if piece[0].isdigit() else 1


def _scored(text: str, importance=None, *, name: str = "a", whole_latex: bool = False) -> ScoredChain:
    spans = segment(text, whole_latex=whole_latex)
    if importance is None:
        importance = np.random.default_rng(len(text)).random(len(spans)).tolist()
    return ScoredChain(id=name, scorer="s", text=text, spans=spans, importance=list(importance)[: len(spans)])


part = st.sampled_from(["Tom", "don't", "88", "123", "3.5", "1,200", "1 200", "2x", "\\frac", "é"]) | st.sampled_from(
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


@given(st.permutations(range(40)), st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9]))
def test_the_threshold_is_the_quantile_of_1_minus_ratio_and_not_of_ratio(importance, ratio):
    chain = _scored(" ".join(f"w{number}" for number in range(40)), importance)
    kept = prune(chain, ratio, count_tokens=_spans).kept
    assert kept == [index for index, score in enumerate(importance) if score >= np.quantile(importance, 1 - ratio)]


def test_half_of_a_real_chain_is_more_important_than_the_other_half(tiny_tokenizer):
    chain = _scored(LONG)
    pruned = prune(chain, 0.5, count_tokens=batch_token_counter(tiny_tokenizer))
    kept = np.isin(np.arange(len(chain.spans)), pruned.kept)
    importance = np.array(chain.importance)
    assert importance[kept].mean() > importance[~kept].mean()
    assert 0.3 < kept.mean() < 0.7


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_ratio_is_met_to_one_of_the_target_models_tokens(real_tokenizer, ratio):
    count = batch_token_counter(real_tokenizer)
    original = len(real_tokenizer(LONG.strip(), add_special_tokens=False)["input_ids"])
    for seed in range(20):
        chain = _scored(LONG, np.random.default_rng(seed).random(1000))
        pruned = prune(chain, ratio, count_tokens=count)
        assert pruned.tokens == len(real_tokenizer(pruned.text, add_special_tokens=False)["input_ids"])
        assert pruned.original_tokens == original
        assert abs(pruned.tokens - round(ratio * original)) <= 1


def test_tokens_grow_with_the_ratio(real_tokenizer):
    count = batch_token_counter(real_tokenizer)
    tokens = [prune(_scored(LONG), ratio / 20, count_tokens=count).tokens for ratio in range(1, 21)]
    assert tokens == sorted(tokens) and tokens[0] < tokens[-1] == count([LONG.strip()])[0]


@settings(max_examples=150)
@given(a_chain(), a_ratio)
def test_the_count_is_that_of_the_text_with_any_tokenizer(real_tokenizer, chain, ratio):
    count = batch_token_counter(real_tokenizer)
    pruned = prune(chain, ratio, count_tokens=count)
    assert [pruned.tokens, pruned.original_tokens] == count([pruned.text.strip(), chain.text.strip()])
    assert pruned.kept == sorted(set(pruned.kept)) and pruned.kept
    assert _parts(pruned.text) == [chain.text[slice(*chain.spans[index])] for index in pruned.kept]


def test_a_long_number_in_the_way_is_left_out_and_less_important_words_fill_the_gap():
    chain = _scored("one two 123456789012 three four five six", [7, 6, 5, 4, 3, 2, 1])
    pruned = prune(chain, 5 / 18, count_tokens=_digits)
    assert pruned.text == "one two three four" and pruned.tokens == 4  # within a token of what was asked for


def test_a_long_number_that_overshoots_by_one_is_kept():
    chain = _scored("one two 123456789012 three four five six", [7, 6, 5, 4, 3, 2, 1])
    assert prune(chain, 13 / 18, count_tokens=_digits).text == "one two 123456789012"


def test_a_long_number_is_kept_where_the_rest_comes_less_near():
    chain = _scored("one 12345678 two", [3, 2, 1])
    assert prune(chain, 0.7, count_tokens=_digits).text == "one 12345678"  # 9 of 7 wanted; without it 2


number_or_word = st.sampled_from(["a", "b", "so", "Tom", "7", "42", "1234", "987654321", "3.14159", "+", "."])
numeric_text = st.lists(number_or_word, min_size=1, max_size=20).map(" ".join)


def _greedy(chain: ScoredChain, ratio: float) -> list[int]:
    """What the docstring of `prune` says, step by step, where costs add up."""
    costs = [_cost(chain.text[start:end]) for start, end in chain.spans]
    wanted = round(ratio * sum(costs))
    ranked = sorted(range(len(costs)), key=lambda index: (-chain.importance[index], index))

    def total(chosen):
        return sum(costs[index] for index in chosen)

    number = sum(total(ranked[:n]) <= wanted for n in range(1, len(ranked) + 1))
    below, above = ranked[:number], ranked[: number + 1]
    if below and (total(below) >= wanted or number == len(ranked)):
        return sorted(below)
    if total(above) - wanted > 1 and (not below or wanted - total(below) > 1):
        for index in ranked[number + 1 :]:
            if (not below or wanted - total(below) > 1) and total([*below, index]) <= wanted:
                below = [*below, index]
    choices = [chosen for chosen in (below, above) if chosen]  # something is always kept
    return sorted(min(choices, key=lambda chosen: (abs(total(chosen) - wanted), total(chosen))))


@settings(max_examples=300)
@given(a_chain(numeric_text), a_ratio)
def test_spans_are_taken_greedily_and_the_nearest_count_wins(chain, ratio):
    assert prune(chain, ratio, count_tokens=_digits).kept == _greedy(chain, ratio)


some_keep = st.builds(
    KeepSettings,
    keep_tokens=st.lists(st.sampled_from(["88", "Tom", ".", "=", "= 88", "\\", "Tom/"]), max_size=3),
    keep_digits=st.booleans(),
    keep_operators=st.booleans(),
    skip_spaces=st.booleans(),
    drop_consecutive=st.booleans(),
)


@given(st.lists(a_chain(), max_size=4), st.lists(a_ratio | st.just(1.0), max_size=4), some_keep)
def test_many_at_once_are_the_same_as_one_by_one(chains, ratios, keep):
    together = prune_many(chains, ratios, count_tokens=_digits, keep=keep)
    assert together == [prune(c, ratio, count_tokens=_digits, keep=keep) for c in chains for ratio in ratios]


def test_many_at_once_are_the_same_as_one_by_one_with_a_real_tokenizer(real_tokenizer):
    count, rng = batch_token_counter(real_tokenizer), random.Random(0)
    lines = LONG.split("\n")
    chains = [_scored("\n".join(rng.sample(lines, 1 + n % 9)) + " ok", name=str(n)) for n in range(12)]
    ratios = [0.5, 0.7, 0.9, 1.0]
    together = prune_many(chains, ratios, count_tokens=count)
    assert [(p.id, p.ratio) for p in together] == [(chain.id, ratio) for chain in chains for ratio in ratios]
    assert together == [prune(chain, ratio, count_tokens=count) for chain in chains for ratio in ratios]


def test_the_tokenizer_is_asked_in_few_large_batches():
    calls = []

    def count(texts):
        calls.append(len(texts))
        return _spans(texts)

    prune_many([_scored(LONG, name=str(n)) for n in range(10)], [0.5, 0.6, 0.7, 0.8, 0.9], count_tokens=count)
    assert len(calls) < 20  # 10 chains at 5 ratios


@given(a_chain(), a_ratio, some_keep)
def test_forced_spans_stay_and_what_is_not_forced_stands_behind_them(chain, ratio, keep):
    keep = keep.model_copy(update={"drop_consecutive": False})
    pieces = [chain.text[start:end] for start, end in chain.spans]
    forced = {
        index
        for index, piece in enumerate(pieces)
        if (keep.keep_digits and any(character.isdigit() for character in piece))
        or piece in keep.keep_tokens
        or (keep.keep_operators and keep.skip_spaces and span_kind(piece) == "operator")
    }
    pruned = prune(chain, ratio, count_tokens=_spans, keep=keep)
    assert forced <= set(pruned.kept)
    if not any(len(_parts(token)) > 1 for token in keep.keep_tokens):
        assert pruned.tokens == max(1, len(forced), round(ratio * len(pieces)))


@given(a_chain(), a_ratio, some_keep)
def test_operators_stay_before_words_and_the_equals_sign_is_the_first_of_them_to_go(chain, ratio, keep):
    keep = keep.model_copy(
        update={"keep_operators": True, "skip_spaces": False, "keep_tokens": [], "drop_consecutive": False}
    )
    kept = prune(chain, ratio, count_tokens=_spans, keep=keep).kept
    pieces = [chain.text[start:end] for start, end in chain.spans]
    ranks = {
        index: (span_kind(piece) == "operator") + (span_kind(piece) == "operator" and piece != "=")
        for index, piece in enumerate(pieces)
        if not (keep.keep_digits and any(character.isdigit() for character in piece))
    }
    left = [rank for index, rank in ranks.items() if index not in kept]
    assert min((ranks[index] for index in kept if index in ranks), default=2) >= max(left, default=0)


@given(a_chain(), a_ratio, some_keep)
def test_exceptions_neither_glue_nor_reorder(chain, ratio, keep):
    pruned = prune(chain, ratio, count_tokens=_spans, keep=keep)
    assert pruned.kept == sorted(set(pruned.kept)) and pruned.kept
    assert _parts(pruned.text) == [chain.text[slice(*chain.spans[index])] for index in pruned.kept]
    if ratio == 1.0:
        assert pruned.text == chain.text


SUM = "Tom has 3 + 4 = 7 apples. Half of 7 × 2 is 7."


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ({"keep_digits": True}, "3 4 7 7 2 7"),
        ({"keep_tokens": ["apples", "."]}, "apples. ."),
        ({"keep_tokens": ["7 apples"]}, "7 apples"),
        ({"keep_tokens": ["of 7 × 2"]}, "of 7 × 2"),
        ({"keep_tokens": ["pples", "alf o", "7 appl"]}, "Tom"),  # parts of words are no words
        ({"keep_tokens": ["nowhere", "tom"]}, "Tom"),
        ({"keep_tokens": [""]}, "Tom"),
    ],
    ids=str,
)
def test_what_is_forced_takes_the_chain_over_its_ratio(keep, text):
    chain = _scored(SUM, range(100, 0, -1))
    assert prune(chain, 0.01, count_tokens=_spans, keep=KeepSettings(**keep)).text == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.05, "+"), (0.1, "+ ×"), (0.15, "+ = ×"), (0.25, "Tom + = ×")],
)
def test_operators_stay_as_far_as_the_ratio_has_room(ratio, text):
    chain, keep = _scored(SUM, range(100, 0, -1)), KeepSettings(keep_operators=True)
    assert len(chain.spans) == 17 and prune(chain, ratio, count_tokens=_spans, keep=keep).text == text


def _letters(texts: Sequence[str]) -> list[int]:
    """A counter for which spaces are tokens, as they are before digits that are taken one by one."""
    return [len(text) for text in texts]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "He has 3 + 4 = 7 eggs"),
        (0.9, "He has 3 + 4=7 eggs"),  # the last operator's spaces are the first to go
        (0.8, "He has 3+4=7 eggs"),
        (0.6, "He has 3+4=7"),
        (0.2, "3+4=7"),
    ],
)
def test_spaces_beside_operators_go_before_any_word(ratio, text):
    chain = _scored("He has 3 + 4 = 7 eggs", [7, 6, 5, 4, 3, 2, 1, 0])
    keep = KeepSettings(keep_digits=True, keep_operators=True, skip_spaces=True)
    assert prune(chain, ratio, count_tokens=_letters, keep=keep).text == text


def test_spaces_alone_are_never_kept():
    keep = KeepSettings(skip_spaces=True)  # and no operator stays by force
    pruned = prune(_scored("however + so", [2, 0, 1]), 0.3, count_tokens=_letters, keep=keep)
    assert pruned.text == "+ so" and pruned.kept == [1, 2]  # "however" is too long


def test_only_between_operator_and_number_and_never_across_lines_are_spaces_skipped():
    text = "x = y\na - 5 e - 5 3 x 4 \\times 4 * \n2 = - 3"
    chain = _scored(text)
    keep = KeepSettings(keep_operators=True, keep_digits=True, skip_spaces=True)
    shortest = "x = y\na -5 e -5 3 x 4 \\times 4* \n2= -3"  # of all spans
    assert prune(chain, len(shortest) / len(text), count_tokens=_letters, keep=keep).text == shortest


@given(a_chain(), a_ratio, some_keep)
def test_skipping_spaces_never_costs_a_kept_number_or_its_neighbours(chain, ratio, keep):
    keep = keep.model_copy(update={"skip_spaces": True})
    pruned = prune(chain, ratio, count_tokens=_letters, keep=keep)
    assert _parts(pruned.text) == [chain.text[slice(*chain.spans[index])] for index in pruned.kept]
    assert pruned.text.count("\n") <= chain.text.count("\n")


def test_what_is_forced_counts_towards_the_ratio():
    keep = KeepSettings(keep_digits=True)
    chain = _scored("a b c 1 d e f 2", [9, 1, 1, 0, 1, 1, 8, 0])
    assert prune(chain, 0.5, count_tokens=_spans, keep=keep).text == "a 1 f 2"


def test_a_listed_word_does_not_match_a_longer_one():
    chain = _scored("Steps before Step 1: Stepping, Step2, footStep Step.", [1] + [0] * 20)
    kept = prune(chain, 0.01, count_tokens=_spans, keep=KeepSettings(keep_tokens=["Step"])).kept
    assert [chain.spans[index][0] for index in kept] == [chain.text.index("Step 1"), chain.text.index("Step.")]


def test_a_listed_text_may_hold_a_line_break():
    chain = _scored("One.\nTwo two.\nThree", [1, 0, 0, 0, 0, 0])
    kept = prune(chain, 0.01, count_tokens=_spans, keep=KeepSettings(keep_tokens=[".\nThree"])).kept
    assert kept == [4, 5]


def test_of_equal_listed_spans_that_come_to_stand_side_by_side_the_first_stays():
    chain = _scored("Step: one : two : three 3 x 3 : four", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    listed = {"keep_tokens": ["Step", ":"], "keep_digits": True}
    plain, dropping = (
        prune(chain, 0.01, count_tokens=_spans, keep=KeepSettings(**listed, drop_consecutive=drop)).text
        for drop in (False, True)
    )
    assert plain == "Step: : : 3 3 :"
    assert dropping == "Step: 3 3 :"  # numbers are kept, but not listed


def test_listed_spans_with_something_kept_between_them_all_stay():
    chain = _scored(": one : two : three", [0, 9, 0, 0, 0, 0])
    keep = KeepSettings(keep_tokens=[":"], drop_consecutive=True)
    assert prune(chain, 0.5, count_tokens=_spans, keep=keep).text.startswith(": one :")


@pytest.mark.parametrize(
    "whole",
    ["\\boxed{18}", "\\frac{a + b}{2}", "**Bold:**", "[a link](http://a.b/c?d=e)", "| x | y |", "`f(x)`", "\\[ 3 \\]"],
)
def test_latex_and_markdown_that_are_kept_are_kept_to_the_byte(whole):
    text = f"so then\n\nthe result is {whole}, as was said before"
    start = text.index(whole)
    inside = [start <= a and b <= start + len(whole) for a, b in segment(text)]
    assert prune(_scored(text, inside), sum(inside) / len(inside), count_tokens=_spans).text == whole


@given(st.integers(0, 1000), a_ratio)
def test_whole_latex_spans_never_leave_a_brace_behind(seed, ratio):
    text = "So \\frac{1}{2} of \\text{ 36 eggs} is \\boxed{\\frac{36}{2}} or $\\sqrt[3]{x_{1}}$."
    chain = _scored(text, np.random.default_rng(seed).random(20), whole_latex=True)
    pruned = prune(chain, ratio, count_tokens=_spans)
    pieces = [chain.text[start:end] for start, end in chain.spans]
    assert [piece for piece in pieces if piece in pruned.text and "\\" in piece] == [
        pieces[index] for index in pruned.kept if "\\" in pieces[index]
    ]
    assert pruned.text.count("{") == pruned.text.count("}")


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
    layout = Layout(text, segment(text))
    assert layout.join(np.arange(len(segment(text)))) == text
    assert layout.join(np.array([0, 1, 3, 4, 5, 6])) == "$18 \\frac{1}"
    assert layout.join(np.array([2])) == "per"


def test_one_word_is_kept_at_every_ratio():
    assert prune(_scored("Seven"), 0.1, count_tokens=_spans).text == "Seven"


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        prune(_scored("a b"), ratio, count_tokens=_spans)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_chain_is_refused(text):
    with pytest.raises(ValueError, match="empty"):
        prune(_scored(text), 0.5, count_tokens=_spans)


def test_a_first_span_that_is_too_long_gives_way_to_what_fits():
    text = "incomprehensibilities are 3 and 4"
    spans = segment(text)
    chain = ScoredChain(id="a", scorer="s", text=text, spans=spans, importance=[5.0, 4.0, 3.0, 2.0, 1.0])
    letters = prune(chain, 0.3, count_tokens=lambda texts: [len(t.replace(" ", "")) for t in texts])
    assert letters.text == "are 3 and 4" and letters.tokens == 8  # 8 of 29 letters: what fits of 9
    forced = prune(
        chain, 0.3, count_tokens=lambda ts: [len(t.replace(" ", "")) for t in ts],
        keep=KeepSettings(keep_tokens=["incomprehensibilities"]),
    )  # fmt: skip
    assert forced.text == "incomprehensibilities"


@pytest.mark.parametrize(
    ("gap", "written"),
    [
        ("\n\n", "\n\n"),
        ("\r\n\r\n", "\r\n\r\n"),
        ("\n  \n", "\n\n"),
        ("\r\n \t\r\n\r\n", "\r\n\r\n"),
        (" \r\n ", "\r\n"),
        ("\r", "\r"),
        (" \u2028", "\u2028"),
        ("\n\r\n", "\n\n"),
        ("\n", "\n"),
    ],
)
def test_a_line_end_keeps_its_kind_and_an_empty_line_stays_one(gap, written):
    text = f"a b{gap}c d"
    layout = Layout(text, segment(text))
    assert layout.join(np.array([0, 3])) == f"a{written}d"
    assert layout.join(np.arange(4)) == text


def test_of_several_line_ends_between_two_spans_the_first_gives_the_kind():
    text = "a\r\nb\nc d\ne\r\nf"
    assert Layout(text, segment(text)).join(np.array([0, 2, 3, 5])) == "a\r\nc d\nf"


@pytest.mark.parametrize(
    ("text", "kept", "written"),
    [
        ("首先，我们有3个苹果，所以答案是3。", ["首先", "所以答案是3", "。"], "首先所以答案是3。"),
        ("まず、りんごは5個、全部で8個です。", ["まず", "、", "全部で8個です"], "まず、全部で8個です"),
        ("首先,所以.结果", ["首先", "所以", "结果"], "首先所以结果"),
        ("首先,所以.结果", ["首先", "."], "首先."),
        ("有3个，共5元", ["有3个", "共5元"], "有3个共5元"),
        ("共3，5元", ["共3", "5元"], "共3 5元"),  # two numbers are never glued
        ("首先， 所以", ["首先", "所以"], "首先 所以"),  # the text had a space
        ("首先，\n所以", ["首先", "所以"], "首先\n所以"),
        ("f(x+y)=(3)", ["f", "(", ")", "=", "3"], "f()=3"),
        ("88/2=44", ["88", "2", "=", "44"], "88 2=44"),
        ("balls:16", ["balls", "16"], "balls 16"),
        ("don't(a'b')", ["don't", "a'b"], "don't a'b"),
        ("a(')b", ["a", "'", "b"], "a ' b"),  # a'b would be one word
        ("5(,)3 5(.)3", ["5", ",", "3", "5", ".", "3"], "5 , 3 5 . 3"),  # 5,3 and 5.3 would be one number
        ("=x= $5$ \\(frac", ["=", "=", "$", "$", "\\(", "frac"], "= = $ $ \\(frac"),
        ("🇩🇪(🇫🇷)👍", ["🇩🇪", "🇫🇷", "👍"], "🇩🇪 🇫🇷👍"),
    ],
)
def test_no_space_is_written_where_the_text_had_none_unless_two_spans_would_become_one(text, kept, written):
    parts, chosen = _parts(text), []
    for index, part in enumerate(parts):
        if len(chosen) < len(kept) and part == kept[len(chosen)]:
            chosen.append(index)
    assert [parts[index] for index in chosen] == kept
    assert Layout(text, segment(text)).join(np.array(chosen)) == written


@given(st.text(alphabet="漢字かカ，。、「」,.()5x \n", min_size=1, max_size=30).filter(segment), st.data())
def test_a_script_without_spaces_gets_none_and_loses_no_character(text, data):
    spans = segment(text)
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, len(spans) - 1), min_size=1))))
    written = Layout(text, spans).join(kept)
    assert "".join(written.split()) == "".join("".join(text[slice(*spans[index])] for index in kept).split())
    for before, after in pairwise(kept):
        between = text[spans[before][1] : spans[after][0]]
        left, right = text[spans[before][1] - 1], text[spans[after][0]]
        if not any(character.isspace() for character in between) and (left in "漢字かカ" or right in "漢字かカ"):
            assert left + right in written


@pytest.mark.parametrize(
    ("text", "kept", "written"),
    [
        ("6 * 432 = 2592", [0, 2, 4], "6  432 2592"),  # "6 432" would be read as one number
        ("1 234 and 567", [0, 2], "1 234  567"),
        ("6*432", [0, 2], "6  432"),
        ("60 * 43", [0, 2], "60 43"),
        ("2020 was 100", [0, 2], "2020 100"),
        ("6 eggs\n432", [0, 2], "6\n432"),
    ],
)
def test_two_numbers_that_a_space_would_make_one_get_two_spaces(text, kept, written):
    layout = Layout(text, segment(text))
    assert layout.join(np.array(kept)) == written
    assert _parts(written) == [layout.pieces[index] for index in kept]


def test_whitespace_around_a_chain_is_no_part_of_its_length(real_tokenizer):
    count = batch_token_counter(real_tokenizer)
    inner = LONG.strip()
    [plain], [padded] = (
        prune_many([_scored(text, np.random.default_rng(0).random(1000))], [0.5], count_tokens=count)
        for text in (inner, f"\n\n  {inner} \n\n\n")
    )
    assert padded == plain
    whole = prune(_scored(f" \n{inner}\n"), 1.0, count_tokens=count)
    assert whole.text == f" \n{inner}\n" and whole.tokens == whole.original_tokens == count([inner])[0]


@pytest.mark.parametrize(
    ("text", "kept"), [("it is 3 x 4 here", ["3", "x", "4"]), ("so x is large here now", ["is", "large", "here"])]
)
def test_keep_operators_keeps_an_x_between_numbers_and_no_other(text, kept):
    importance = [1.0 if part in kept and part != "x" else 0.0 for part in text.split()]
    chain = _scored(text, importance)
    words = prune(
        chain,
        0.5,
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        keep=KeepSettings(keep_operators=True),
    ).text.split()
    assert words == kept
