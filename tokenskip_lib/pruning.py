"""From importance to a shorter chain: which spans are kept at a ratio, and how they are written down.

Knows scores, spans and a token counter; does not know where the scores came from.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tokenskip_lib.records import PrunedChain, ScoredChain

TokenCounter = Callable[[str], int]


def prune(chain: ScoredChain, ratio: float, *, count_tokens: TokenCounter) -> PrunedChain:
    """Keep the most important part of one chain of thought, in its original order.

    Spans are taken from the most important down, ties to the earlier span, until the target model
    would see as near to round(ratio * T) tokens as whole spans allow, T being the chain's own count.

    Args:
        chain: text with S spans and S importance scores (float, higher is kept).
        ratio: fraction of target-model tokens kept, 0 < ratio <= 1 (TokenSkip's gamma).
        count_tokens: text -> number of target-model tokens.

    Returns:
        The pruned chain; at ratio 1.0 its text is the original's to the byte.

    Raises:
        ValueError: ratio outside (0, 1], no span, or a score that is not finite.

    Source: TokenSkip (arXiv:2502.12067), eq. 3-4: the threshold is the (1 - ratio) quantile, so that
        the top `ratio` is kept.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    if not chain.spans:
        raise ValueError(f"chain '{chain.id}' is empty: nothing to prune")
    if len(chain.importance) != len(chain.spans):
        raise ValueError(f"chain '{chain.id}': {len(chain.spans)} spans, {len(chain.importance)} scores")
    scores = np.asarray(chain.importance, dtype=float)
    if not np.isfinite(scores).all():
        raise ValueError(f"chain '{chain.id}': an importance score is not finite")
    original = count_tokens(chain.text)
    if ratio == 1.0:
        kept, text, tokens = list(range(len(chain.spans))), chain.text, original
    else:
        kept, text, tokens = _nearest_to(chain, scores, round(ratio * original), count_tokens)
    return PrunedChain(
        id=chain.id, scorer=chain.scorer, ratio=ratio, text=text, kept=kept, tokens=tokens, original_tokens=original
    )


def join_spans(text: str, spans: Sequence[tuple[int, int]], kept: Sequence[int]) -> str:
    """Write the kept spans of a text down again, so that what stood apart stays apart.

    Neighbours keep what was between them, to the byte. Where something was left out, a line break
    of the gap survives as one, any other gap becomes a single space: numbers are never glued
    ("88 / 2" without its operator is "88 2") and steps stay on lines of their own.

    Args:
        spans: S character spans of `text`, ascending.
        kept: indices into `spans`, ascending.
    """
    pieces: list[str] = []
    for position, index in enumerate(kept):
        start, end = spans[index]
        if position:
            previous = kept[position - 1]
            between = text[spans[previous][1] : start]
            pieces.append(between if index == previous + 1 else _separator(between))
        pieces.append(text[start:end])
    return "".join(pieces)


def _separator(gap: str) -> str:
    if "\n" not in gap:
        return " "
    return "\n\n" if "\n\n" in gap else "\n"


def _nearest_to(
    chain: ScoredChain, scores: np.ndarray, wanted: int, count_tokens: TokenCounter
) -> tuple[list[int], str, int]:
    # A stable sort on the negated scores puts the earlier of two equal spans first.
    ranked = np.argsort(-scores, kind="stable")

    def keep(number: int) -> tuple[list[int], str, int]:
        kept = sorted(int(index) for index in ranked[:number])
        text = join_spans(chain.text, chain.spans, kept)
        return kept, text, count_tokens(text)

    # Token counts grow with the number of spans: find the last number at or below the wanted count.
    low, high = 1, len(ranked)
    while low < high:
        middle = math.ceil((low + high) / 2)
        if keep(middle)[2] <= wanted:
            low = middle
        else:
            high = middle - 1
    below = keep(low)
    above = keep(min(low + 1, len(ranked)))
    return above if abs(above[2] - wanted) < abs(below[2] - wanted) else below
