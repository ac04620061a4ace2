"""Spans cover the text and break nothing; token scores are averaged over them as a plain loop would."""

import re
from itertools import pairwise
from time import perf_counter

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.core.records import ChainText
from tokenskip_lib.problems.arithmetic import numbers
from tokenskip_lib.pruning.spans import (
    average_over_spans,
    build_scored_chain,
    segment,
    span_kind,
    span_kinds,
    sum_over_spans,
)

any_text = st.text(max_size=60) | st.text(alphabet="ab1 2.,'’\n\\${}=+-*_²½éÜß漢\t×\u0301", max_size=60)
latex_part = st.sampled_from(
    ["\\frac", "\\text", "\\sqrt", "\\", "{", "{", "}", "}", "[", "]", "1", "x", " ", "\n", "^"]
)
latex = st.lists(latex_part, max_size=30).map("".join)


def _parts(text: str, **options) -> list[str]:
    return [text[start:end] for start, end in segment(text, **options)]


@given(any_text | latex)
def test_spans_cover_every_character_but_whitespace_exactly_once_in_order(text):
    spans = segment(text)
    grouping = {match.start() + 1 for match in re.finditer(r"\d\s(?=\d{3})", text)}  # the space in 1 234
    covered = [position for start, end in spans for position in range(start, end)]
    assert covered == sorted(set(covered))
    blank = {position for position, character in enumerate(text) if character.isspace()}
    assert set(range(len(text))) - blank <= set(covered) and blank & set(covered) <= grouping
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
    assert _parts(text) == parts


@pytest.mark.parametrize("mark", [" ", "\u00a0", "\u2009", "\u202f", ",", "{,}", "\\,", "\\!", "'", "’"])
def test_a_number_is_one_span_in_every_spelling_of_its_thousands(mark):
    long, short = f"1{mark}234{mark}567", f"12{mark}345.50"
    assert _parts(f"The town pays {long} and gets ${short}.") == [
        *["The", "town", "pays", long, "and", "gets", "$", short, "."]
    ]
    assert span_kind(long) == "number"
    plain = numbers(f"{long} and {short}")
    # A plain space may part two numbers, so that arithmetic reads it as such.
    assert plain == (["1", "234", "567", "12", "345.50"] if mark == " " else ["1234567", "12345.50"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The town pays 1 234 gets 1 567", ["The", "town", "pays", "1 234", "gets", "1 567"]),
        ("5 100", ["5 100"]),  # ambiguous: kept or left out together, and never halved
        ("in 2020 100 people", ["in", "2020", "100", "people"]),  # four digits begin no group
        ("0 100", ["0", "100"]),
        ("3 10", ["3", "10"]),
        ("3 1000", ["3", "1000"]),
        ("1 234 5678", ["1 234", "5678"]),
        ("3.5 100", ["3.5", "100"]),
        ("x1 234", ["x1", "234"]),
        ("1  234", ["1", "234"]),
        ("1\n234", ["1", "234"]),
        ("1\t234", ["1", "234"]),
        ("1 234,567", ["1 234,567"]),
        ("12 345e3", ["12 345e3"]),
        ("1{,}2", ["1", "{", ",", "}", "2"]),
    ],
)
def test_a_plain_space_groups_thousands_only_before_groups_of_exactly_three_digits(text, parts):
    assert _parts(text) == parts


@given(st.text(alphabet="1é\u0301\ufe0f\u20e3👍🏽🇩🇪👩\u200d=a \n‌ नि्", max_size=30), st.booleans())
def test_no_grapheme_cluster_is_split(text, whole_latex):
    begins = {match.start() for match in regex.finditer(r"\X", text)}
    for start, _ in segment(text, whole_latex=whole_latex):
        assert start in begins or text[start - 1].isspace()


@pytest.mark.parametrize("cluster", ["1️⃣", "#️⃣", "👍🏽", "🇩🇪", "👨‍👩‍👧", "é", "क्‍ष", "=\u0338", "❤️"])
def test_what_is_seen_as_one_character_is_in_one_span(cluster):
    text = f"So {cluster} is"
    assert _parts(text) == ["So", cluster, "is"]


LATEX_UNITS = ["\\frac{", "\\frac{}", "\\frac[{", "{", "}", "\\"]
NUMBER_UNITS = ["1 234 ", "1{,}", "1,", ".5", "1e", "a'", "=", " "]
CLUSTER_UNITS = ["🇩🇪", "🇩🇪👍🏽", "\u0301", "👩\u200d", "漢"]


@pytest.mark.parametrize("unit", [*LATEX_UNITS, *NUMBER_UNITS, *CLUSTER_UNITS])
def test_the_time_is_linear_in_the_length(unit):
    begin = perf_counter()
    segment(unit * 50_000, whole_latex=True)  # in linear time 0.01 to 0.3 s; in quadratic time minutes
    assert perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cafe\u0301 e\u0301te\u0301.", ["cafe\u0301", "e\u0301te\u0301", "."]),
        ("l'e\u0301te\u0301", ["l'e\u0301te\u0301"]),
        ("a\u0301\u0302b", ["a\u0301\u0302b"]),
        ("x\u0302 = 2e\u0301", ["x\u0302", "=", "2e\u0301"]),
    ],
)
def test_a_word_with_decomposed_accents_stays_one_word(text, parts):
    assert _parts(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("2x = \\frac{1}{2}.", ["2x", "=", "\\frac{1}{2}", "."]),
        ("is \\boxed{18}$", ["is", "\\boxed{18}", "$"]),
        ("36\\text{ eggs} left", ["36", "\\text{ eggs}", "left"]),
        ("\\boxed{\\frac{a}{b_{1}}}+1", ["\\boxed{\\frac{a}{b_{1}}}", "+", "1"]),
        ("\\sqrt[3]{x}=2", ["\\sqrt[3]{x}", "=", "2"]),
        ("3 \\times 4", ["3", "\\times", "4"]),
        ("x_{\\text{total}}", ["x", "_", "{", "\\text{total}", "}"]),  # `}}` is not all the command's
        ("{{\\text{a}}} b", ["{{", "\\text{a}", "}}", "b"]),
        ("\\frac {1}", ["\\frac", "{", "1", "}"]),  # a space ends the command
        ("x^{2}", ["x", "^", "{", "2", "}"]),  # no command, so nothing is joined
    ],
)
def test_a_latex_command_and_its_arguments_are_one_span_if_asked(text, parts):
    assert _parts(text, whole_latex=True) == parts


@pytest.mark.parametrize("open_end", ["{1 and more words. 5", "[3 more", "{a{b} more", "{a more}b{"])
def test_a_bracket_that_is_never_closed_swallows_nothing_after_it(open_end):
    text = f"So \\frac{open_end} of it, then \\boxed{{7}} ends."
    parts = _parts(text, whole_latex=True)
    assert parts[-2:] == ["ends", "."] and "\\boxed{7}" in parts and "then" in parts
    assert all(len(part) < 14 for part in parts)


@given(any_text | latex)
def test_whole_latex_spans_ascend_are_disjoint_and_cover_every_character_but_whitespace(text):
    spans = segment(text, whole_latex=True)
    assert all(start < end for start, end in spans)
    assert all(before <= after for (_, before), (after, _) in pairwise(spans))
    covered = {position for start, end in spans for position in range(start, end)}
    assert {position for position, character in enumerate(text) if not character.isspace()} <= covered
    assert not any(text[start].isspace() or text[end - 1].isspace() for start, end in spans)


@given(any_text)
def test_without_a_command_whole_latex_changes_nothing(text):
    text = text.replace("\\", "/")
    assert segment(text, whole_latex=True) == segment(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3.5", "number"),
        ("2x", "number"),
        ("\\frac{1}{2}", "number"),
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


@given(any_text | latex)
def test_every_span_has_a_kind(text):
    kinds = {"number", "operator", "connective", "name", "word", "punctuation"}
    for parts in (_parts(text), _parts(text, whole_latex=True)):
        assert {span_kind(part) for part in parts} <= kinds
        assert [(a, b) for a, b, part in zip(span_kinds(parts), map(span_kind, parts), parts, strict=True)
                if a != b and part != "x"] == []  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("3 x 4 = 12", ["operator"]),
        ("5 x $3 = $15", ["operator"]),
        ("\\(2.5 x 4\\)", ["operator"]),
        ("let x be 3", ["word"]),
        ("2 x = 6", ["word"]),
        ("x 4", ["word"]),
        ("4 x", ["word"]),
        ("x", ["word"]),
        ("5 x $", ["word"]),
        ("3 x 4 and x = 2", ["operator", "word"]),
    ],
)
def test_an_x_is_an_operator_only_between_numbers(text, kinds):
    parts = _parts(text)
    assert [kind for part, kind in zip(parts, span_kinds(parts), strict=True) if part == "x"] == kinds


def test_a_spans_score_is_the_mean_over_its_tokens():
    # "abc de f": one token straddles two spans, one is whitespace.
    spans = [(0, 3), (4, 6), (7, 8)]
    offsets = [(0, 1), (1, 2), (2, 5), (5, 6), (6, 7), (7, 8)]
    assert average_over_spans(spans, offsets, [1.0, 2.0, 6.0, 8.0, 100.0, 5.0]).tolist() == [3.0, 7.0, 5.0]


def test_the_bytes_of_one_character_count_alike():
    # A byte-level tokenizer's three tokens of one character all have that character's offsets.
    assert average_over_spans([(0, 1), (2, 3)], [(0, 1), (1, 3), (2, 3), (2, 3)], [1, 2, 3, 7]).tolist() == [1.0, 4.0]


def test_an_empty_token_counts_for_no_span():
    # Some tokenizers give a token without characters, e.g. a lone word-start mark.
    assert average_over_spans([(0, 2), (3, 4)], [(0, 0), (0, 2), (3, 3), (3, 4)], [9.0, 1.0, 9.0, 2.0]).tolist() == [
        1,
        2,
    ]


def test_a_span_without_a_token_takes_the_lowest_score():
    means = average_over_spans([(0, 3), (4, 6), (7, 8)], [(0, 3), (7, 8)], [2.0, 1.0])
    assert means.tolist() == [2.0, 1.0, 1.0]
    assert average_over_spans([(0, 3)], [], []).tolist() == [0.0]
    assert average_over_spans([], [(0, 3)], [1.0]).tolist() == []


@st.composite
def cut(draw, length: int, overlap: bool) -> list[tuple[int, int]]:
    """Ascending spans of a text: with gaps between them, or tokens of which neighbours may share a character."""
    edges = sorted(draw(st.sets(st.integers(0, length), max_size=20)))
    spans = list(pairwise(edges))
    if overlap:
        return [(start, min(length, end + draw(st.integers(0, 1)))) for start, end in spans]
    return [span for span in spans if draw(st.integers(0, 3))]


@given(cut(40, False), st.data())
def test_averages_are_those_of_a_plain_loop(spans, data):
    offsets = data.draw(cut(40, True))
    scores = data.draw(st.lists(st.floats(-100, 100), min_size=len(offsets), max_size=len(offsets)))
    expected = []
    for start, end in spans:
        inside = [score for score, (a, b) in zip(scores, offsets, strict=True) if a < end and b > start]
        expected.append(sum(inside) / len(inside) if inside else None)
    lowest = min((value for value in expected if value is not None), default=0.0)
    expected = [lowest if value is None else value for value in expected]
    assert average_over_spans(spans, offsets, scores).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(cut(40, False).filter(len), cut(40, True), st.data())
def test_sums_are_those_of_a_plain_loop_and_lose_no_token(spans, offsets, data):
    scores = data.draw(st.lists(st.integers(-9, 9), min_size=len(offsets), max_size=len(offsets)))
    expected = [0] * len(spans)
    for (a, b), score in zip(offsets, scores, strict=True):
        overlapping = [index for index, (start, end) in enumerate(spans) if a < end and b > start]
        before = [index for index, (_, end) in enumerate(spans) if end <= a]
        expected[(overlapping or before[-1:] or [0])[0]] += score
    assert sum_over_spans(spans, offsets, scores).tolist() == expected
    assert sum(expected) == sum(scores)


def test_no_spans_have_no_sums():
    assert sum_over_spans([], [(0, 3)], [1.0]).tolist() == []


a_value = st.just(0.0) | st.floats(1e-15, 1e6) | st.floats(-1e6, -1e-15)


@given(st.lists(a_value, min_size=1, max_size=10))
def test_a_record_holds_six_significant_digits(values):
    text = " ".join("w" * len(values))
    scored = build_scored_chain(ChainText(id="a", chain=text), "s", segment(text), values)
    assert (scored.id, scored.scorer, scored.text, scored.spans) == ("a", "s", text, segment(text))
    assert scored.importance == pytest.approx([float(f"{value:.5e}") for value in values], rel=2e-5, abs=0)
    digits = [np.format_float_scientific(value, unique=True).split("e")[0].strip("-.") for value in scored.importance]
    assert all(len(mantissa) <= 7 for mantissa in digits)


@pytest.mark.parametrize("value", [1e-300, 1e-308, 5e-324, -1e-310])
def test_a_score_too_small_to_matter_stays_a_number(value):
    scored = build_scored_chain(ChainText(id="a", chain="a b"), "s", segment("a b"), [1.0, value])
    assert np.isfinite(scored.importance).all()


def test_a_record_keeps_zeros_and_very_small_scores_finite():
    scored = build_scored_chain(ChainText(id="a", chain="a b c"), "s", segment("a b c"), np.array([0.0, 1e-30, -0.0]))
    assert scored.importance == [0.0, pytest.approx(1e-30), 0.0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("x = .5, 1e-5 v1.2.3", ["x", "=", ".5", ",", "1e-5", "v1.2.3"]),
        ("👨‍👩‍👧 ok ❤️!!", ["👨‍👩‍👧", "ok", "❤️", "!!"]),
        ("\\(x\\) \\$2,100 50\\%", ["\\(", "x", "\\)", "\\$", "2,100", "50", "\\%"]),
        ("26-15=11", ["26", "-", "15", "=", "11"]),
    ],
)
def test_what_is_read_as_one_is_one_span(text, parts):
    assert [text[start:end] for start, end in segment(text)] == parts
