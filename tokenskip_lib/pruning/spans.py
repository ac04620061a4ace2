"""Character spans of a text. Importance is a number a span, so scores do not depend on a tokenizer.

A word, a number or a run of one symbol is one span; whitespace is in no span, but for the spaces that group the
thousands of a number. This module knows no model.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import regex

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.problems.arithmetic import THOUSANDS

Spans = list[tuple[int, int]]
Segmenter = Callable[[str], Spans]
Scores = Sequence[float] | np.ndarray

# A plain space groups thousands as well, if a number begins with one to three digits, none of them a leading 0, and
# groups of exactly three follow: "1 234" is one span, and so is the ambiguous "5 100". "2020 100" and "3 10" are two.
_GROUPED = rf"""
    (?<![\w\p{{No}}.,]) [1-9] \d{{0,2}} (?: [ ] \d{{3}} )+ (?!\d)
    | \d{{1,3}} (?P<mark>{THOUSANDS}) \d{{3}} (?: (?P=mark) \d{{3}} )* (?!\d)
"""
_SPAN = regex.compile(
    rf"""
    \\(?: [A-Za-z]+ | [^\w\s] | _ )                      # a LaTeX command, or an escaped symbol: \frac  \(  \$
    | (?: (?<![\w.]) \. \d+                                # a number, whole: .5
        | (?: {_GROUPED} | \d+ ) (?: [.,] \d+ )*            # 3.5  1,200  1 200  1{{,}}200
          (?: [eE] [+-]? \d+ )?                            # 1e-5
        | [\p{{L}}\p{{Nl}}\p{{No}}] \p{{M}}* (?: ['’] (?=\p{{L}}) )? )+  # a word: don't  2x  m²
    | (?P<symbol>[^\w\s]|_) (?![\p{{M}}\u200d]) (?P=symbol)*  # a symbol, or a run of one: ... ** =
    | \S                                                   # anything else
    """,
    regex.VERBOSE,
)
# What is seen as one character: 1️⃣  👍🏽  é  🇩🇪. Flags are listed, because \X counts back to the first of a row of them.
_CLUSTER = regex.compile(r"\p{RI}{1,2}[\p{GCB=Extend}\p{GCB=SpacingMark}\u200d]* | \X", regex.VERBOSE)
_COMMAND = re.compile(r"\\(?!(?:left|right)\b)[A-Za-z]+")  # \left and \right take a bracket, not an argument
_BRACKET = re.compile(r"(?<!\\)[\[\]{}]")

_CURRENCIES = ("$", "\\$", "€", "£")
# Kinds of span, for looking at what a scorer keeps.
_CONNECTIVE = re.compile(
    "a|an|and|are|as|at|be|because|but|by|can|each|every|first|following|for|from|had|has|have|he|her|his|how|if|in|"
    "into|is|it|its|left|more|next|now|of|on|or|per|she|since|so|that|the|their|them|then|there|therefore|these|they|"
    "this|thus|to|total|was|we|were|when|which|while|will|with|would|you|your",
    re.IGNORECASE,
)


def segment(text: str, *, whole_latex: bool = False) -> Spans:
    """Character spans [start, end) of a text, in order. Every character but whitespace is in one span.

    A number is one span in every spelling: `3.5`, `1,234`, `1 234 567`, `1{,}234`. A sign is a span of its own,
    because "-5" may be a difference. In a script without spaces, a whole clause is one span. What is seen as one
    character (a grapheme cluster: a flag, a letter with its accents) is never split. The time is linear in the
    text's length.

    Args:
        whole_latex: a LaTeX command and its bracketed arguments are one span (`\\frac{1}{2}`,
            `\\boxed{18}`). By default each part is a span.

    Example:
        >>> text = "He pays $3.50."
        >>> [text[start:end] for start, end in segment(text)]
        ['He', 'pays', '$', '3.50', '.']
    """
    spans = [match.span() for match in _SPAN.finditer(text) if not match.group().isspace()]
    if whole_latex:
        spans = _with_arguments(text, spans)
    return spans if text.isascii() else _of_whole_clusters(text, spans)


def _with_arguments(text: str, spans: Spans) -> Spans:
    """Spans in which a LaTeX command holds its arguments."""
    closings, merged = _closings(text), Spans()
    for start, end in spans:
        if merged and start < merged[-1][1]:
            start = merged[-1][1]  # an argument of the command before, or a run of braces that closes more than it
            if start >= end:
                continue
        if _COMMAND.match(text, start):
            while end in closings:
                end = closings[end] + 1
        merged.append((start, end))
    return merged


def _closings(text: str) -> dict[int, int]:
    """The position of each `[` and `{` that is closed -> the position of its own `]` or `}`.

    Square and curly brackets are matched apart. An escaped one (`\\{`) is a brace to print.
    """
    closings: dict[int, int] = {}
    open_at: dict[str, list[int]] = {"]": [], "}": []}
    for match in _BRACKET.finditer(text):
        bracket = match.group()
        if bracket in open_at:
            if open_at[bracket]:
                closings[open_at[bracket].pop()] = match.start()
        else:
            open_at["]" if bracket == "[" else "}"].append(match.start())
    return closings


def _of_whole_clusters(text: str, spans: Spans) -> Spans:
    """Spans of which none begins inside a grapheme cluster. Such a span joins the one before it."""
    begins = {match.start() for match in _CLUSTER.finditer(text)}
    whole = Spans()
    for start, end in spans:
        if whole and start not in begins and start == whole[-1][1]:
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((start, end))
    return whole


def span_kind(text: str, *, before: str = "", after: str = "") -> str:
    """What kind of thing a span is: number, operator, connective, name, word or punctuation.

    Args:
        text: the span.
        before: the span before it, or "".
        after: the span after it, or "".

    An `x` is an operator between two numbers, and a word anywhere else.

    Example:
        >>> [span_kind(text) for text in ("12", "=", "so", "Tom", "apples", ".")]
        ['number', 'operator', 'connective', 'name', 'word', 'punctuation']
        >>> span_kind("x"), span_kind("x", before="3", after="4")
        ('word', 'operator')
    """
    if text == "x" and _holds_digit(before) and _holds_digit(after):
        return "operator"
    return _kind_by_itself(text)


def span_kinds(spans: Sequence[str]) -> list[str]:
    """The kind of each span of a text, from the spans' texts in order; see `span_kind`.

    A currency sign before a number is part of that number here.

    Example:
        >>> span_kinds(["5", "x", "$", "3", "is", "15"])
        ['number', 'operator', 'punctuation', 'number', 'connective', 'number']
        >>> span_kinds(["2", "x", "=", "6"])
        ['number', 'word', 'operator', 'number']
    """
    kinds = [_kind_by_itself(span) for span in spans]
    for index, span in enumerate(spans):
        if span == "x" and 0 < index < len(spans) - 1:
            following = spans[index + 1]
            if following in _CURRENCIES and index + 2 < len(spans):
                following += spans[index + 2]
            kinds[index] = span_kind(span, before=spans[index - 1], after=following)
    return kinds


@lru_cache(maxsize=65536)
def _kind_by_itself(text: str) -> str:
    if _holds_digit(text):
        return "number"
    if text[0] in "+-−*/×÷=<>%^" or text in ("\\times", "\\cdot", "\\frac", "\\div"):
        return "operator"
    if _CONNECTIVE.fullmatch(text):
        return "connective"
    if text[0].isalpha() or text[0] == "\\":
        return "name" if text[0].isupper() else "word"
    return "punctuation"


def _holds_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


def average_over_spans(
    spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], scores: Scores
) -> np.ndarray:
    """The mean score of the tokens that overlap each span.

    Args:
        spans: S character spans, ascending.
        offsets: character span of each of T tokens, ascending.
        scores: T scores.

    Returns:
        S scores. A token that straddles two spans counts for both, one of whitespace for none; a
        span that no token covers (some tokenizers drop characters) takes the lowest score.
    """
    span_starts, span_ends = np.asarray(spans, dtype=int).reshape(-1, 2).T
    starts, ends = np.asarray(offsets, dtype=int).reshape(-1, 2).T
    values = np.asarray(scores, dtype=float)
    real = ends > starts
    starts, ends, values = starts[real], ends[real], values[real]
    first = np.searchsorted(ends, span_starts, side="right")
    last = np.searchsorted(starts, span_ends, side="left")
    totals = np.concatenate([[0.0], np.cumsum(values)])
    covered = last > first
    means = (totals[last] - totals[first]) / np.maximum(last - first, 1)
    means[~covered] = means[covered].min() if covered.any() else 0.0
    return means


def sum_over_spans(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], scores: Scores) -> np.ndarray:
    """The summed score of each span's tokens. Each token counts once, so that sums over a step's spans are exact.

    Args:
        spans: S character spans, ascending.
        offsets: character span of each of T tokens, ascending.
        scores: T scores.

    Returns:
        S sums, which add up to the sum of all scores. A token belongs to the first span that it overlaps; a token of
        whitespace, to the span before it (or to the first span).

    Example:
        >>> sum_over_spans([(0, 3), (4, 6)], [(0, 2), (2, 3), (3, 4), (4, 6)], [1.0, 2.0, 0.5, 4.0]).tolist()
        [3.5, 4.0]
    """
    if not len(spans):
        return np.zeros(0)
    span_starts, span_ends = np.asarray(spans, dtype=int).reshape(-1, 2).T
    starts, ends = np.asarray(offsets, dtype=int).reshape(-1, 2).T
    first = np.searchsorted(span_ends, starts, side="right")  # the first span that ends after the token's start
    overlaps = (first < len(spans)) & (span_starts[np.minimum(first, len(spans) - 1)] < ends)
    owners = np.maximum(np.where(overlaps, first, first - 1), 0)
    return np.bincount(owners, weights=np.asarray(scores, dtype=float), minlength=len(spans))


def build_scored_chain(chain: ChainText, scorer: str, spans: Spans, importance: Scores) -> ScoredChain:
    """The record of one chain's scores, to six significant digits.

    Raises:
        InputError: a score that is not finite.
    """
    values = np.asarray(importance, dtype=float)
    if not np.isfinite(values).all():
        raise InputError(f"scorer '{scorer}', chain '{chain.id}': a score is not finite; try another dtype or scorer")
    magnitude = np.floor(np.log10(np.maximum(np.abs(values), 1e-300)))
    scale = 10.0 ** (5 - magnitude)
    rounded = (np.round(values * scale) / scale).tolist()
    return ScoredChain(id=chain.id, scorer=scorer, text=chain.chain, spans=spans, importance=rounded)
