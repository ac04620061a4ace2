"""A chain of thought as HTML: the darker a span, the more important it is; skipped spans are struck through."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from html import escape

import numpy as np

from tokenskip_lib.pruning.spans import Scores

# ColorBrewer's YlOrBr, light to dark, as matplotlib has it.
_ANCHORS = np.array([
    (255, 255, 229), (255, 247, 188), (254, 227, 145), (254, 196, 79), (254, 153, 41),
    (236, 112, 20), (204, 76, 2), (153, 52, 4), (102, 37, 6),
])  # fmt: skip
_STEPS = 256  # colours of the map
DARKEST = 0.8  # of the map: text stays readable on it
CHAIN_STYLE = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; font-size: 14px"
# No background: the page may be light or dark, and this grey is readable on both.
_SKIPPED_STYLE = "color: #7a7a7a; text-decoration: line-through #c0606080"


def chain_html(
    text: str,
    spans: Sequence[tuple[int, int]],
    importance: Sequence[float] | None = None,
    kept: Collection[int] | None = None,
) -> str:
    """One chain as HTML, with every character of its text. The text is escaped, and MathJax leaves it alone.

    Args:
        text: the whole chain.
        spans: S character spans of the text.
        importance: S scores. A kept span has the colour of its rank in the chain, darker for more important.
            None colours nothing.
        kept: indices of the spans that are kept. The others are struck through. None keeps all.

    Example:
        >>> chain_html("a < b", [(0, 1), (2, 3), (4, 5)], kept=[0, 2]).count("<s ")
        1
    """
    ranks = None if importance is None else importance_ranks(importance)
    chosen = set(range(len(spans)) if kept is None else kept)
    parts, end = [], 0
    for index, (start, stop) in enumerate(spans):
        parts.append(escape(text[end:start]))
        rank = None if ranks is None else ranks[index]
        parts.append(_span_html(text[start:stop], rank, len(spans), index in chosen))
        end = stop
    parts.append(escape(text[end:]))
    return text_block("chain", "".join(parts), CHAIN_STYLE)


def text_block(name: str, content: str, style: str = "") -> str:
    """A `div` of class `tokenskip-NAME` whose content (HTML) MathJax leaves alone.

    A price is `$18`, and not the beginning of a formula. MathJax 3 and MathJax 2 each have a class for this.
    """
    return f'<div class="tokenskip-{name} mathjax_ignore tex2jax_ignore" style="{style}">{content}</div>'


def importance_ranks(importance: Scores) -> np.ndarray:
    """S scores as ranks from 0 to 1, so that scorers with different units can be compared. Equal scores share a rank.

    Example:
        >>> importance_ranks([0.1, 30.0, 0.1, 4.0]).tolist()
        [0.25, 0.875, 0.25, 0.625]
    """
    _, places, counts = np.unique(np.asarray(importance, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # of the places that a value takes in the ascending order, counted from 1
    middle = last - (counts - 1) / 2
    return (middle[places] - 0.5) / max(len(places), 1)


def rank_colours(rank: float) -> tuple[str, str]:
    """Background and text colour of a span, for its importance rank from 0 to 1."""
    return _background(min(int(DARKEST * rank * _STEPS), _STEPS - 1)), "white" if rank > 0.85 else "black"


@lru_cache(maxsize=_STEPS)
def _background(step: int) -> str:
    """One of the map's colours."""
    place = step / (_STEPS - 1) * (len(_ANCHORS) - 1)
    red, green, blue = (round(np.interp(place, range(len(_ANCHORS)), channel)) for channel in _ANCHORS.T)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _span_html(text: str, rank: float | None, number: int, is_kept: bool) -> str:
    """One span of `number` as HTML."""
    title = "" if rank is None else f' title="importance rank {number * (1 - rank) + 0.5:g} of {number}"'
    if not is_kept:
        return f'<s{title} style="{_SKIPPED_STYLE}">{escape(text)}</s>'
    if rank is None:
        return escape(text)
    background, colour = rank_colours(rank)
    return f'<mark{title} style="background: {background}; color: {colour}">{escape(text)}</mark>'
