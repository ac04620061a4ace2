"""What notebook 00 shows of one problem: the method as a diagram, its answers as a figure and under a slider."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tokenskip_lib.figures.style import STYLE, method_styles
from tokenskip_lib.pruning.display import CHAIN_STYLE, rank_colours, text_block

HEIGHT = 1.5  # of a box of the diagram, inches
UPPER, LOWER = 2.05, 0.1  # lower edges of the two rows
# Title, text and equations of each box, in the order of the method; its left edge, its lower edge and its width.
BOXES = [
    ("1  Question", "A child has 11 pencils. His\nsister has 6 fewer ...\nHow many together?", "", 0.1, UPPER, 2.3),
    (
        "2  Chain of thought",
        "His sister has\n11 - 6 = 5 pencils.\nTogether, they have\n11 + 5 = 16 pencils.",
        "",
        2.8,
        UPPER,
        2.2,
    ),
    ("3  Importance", "", "equations 1 and 2", 5.4, UPPER, 2.2),
    ("4  Pruned chain", "sister 11-6=5\n11+5=16", "equations 3 and 4", 8.0, UPPER, 2.0),
    ("5  Ratio in the prompt", "question [EOS] 0.5 [EOS]\n→ pruned chain, answer", "", 7.7, LOWER, 2.3),
    ("6  Fine-tuning", "many problems, six ratios each;\nonly the response is learnt", "equation 5", 4.8, LOWER, 2.5),
    (
        "7  Asked at a ratio",
        "1.0 → His sister has 11 - 6 = 5 pencils.\n\u2003\u2003\u2003Together, they have 11 + 5 = 16 pencils.\n"
        "0.5 → sister 11-6=5\n\u2003\u2003\u200311+5=16",
        "",
        0.1,
        LOWER,
        4.3,
    ),
]
# Importance of the words in box 3, as ranks from 0 to 1: made up for the drawing.
WORDS = [
    [("His", 0.3), ("sister", 0.6), ("has", 0.1)],
    [("11", 0.8), ("-", 0.7), ("6", 0.8), ("=", 0.7), ("5", 0.9)],
]


Point = tuple[float, float]


def method_figure() -> Figure:
    """The whole method on one problem: seven boxes from the question to an answer at a ratio.

    Example:
        >>> len(method_figure().axes[0].patches)
        7
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(10.2, 3.75))
        axes.set(xlim=(0, 10.1), ylim=(0, 3.65), aspect="equal")
        axes.axis("off")
        for title, text, equations, left, bottom, width in BOXES:
            shape = "round,pad=0,rounding_size=0.08"
            box = FancyBboxPatch(
                (left, bottom), width, HEIGHT, boxstyle=shape, facecolor="#f4f7fa", edgecolor="#0173b2"
            )
            axes.add_patch(box)
            axes.text(left + 0.1, bottom + HEIGHT - 0.12, title, va="top", weight="bold", size=10.5)
            axes.text(left + 0.1, bottom + HEIGHT - 0.44, text, va="top", size=8.5, linespacing=1.35)
            axes.text(left + 0.1, bottom + 0.1, equations, va="bottom", size=8.5, color="#0173b2")
        for before, after in pairwise(BOXES):
            head, tail = _arrow(before[3:], after[3:])
            axes.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "0.3"})
        _draw_words(axes, BOXES[2][3] + 0.15, UPPER + HEIGHT - 0.58)
    return figure


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> tuple[Point, Point]:
    """Head and tail of the arrow between two boxes, each a left edge, a lower edge and a width."""
    (from_left, from_bottom, from_width), (to_left, to_bottom, to_width) = start, end
    if from_bottom != to_bottom:  # down, from the middle of the upper box
        middle = from_left + from_width / 2
        return (middle, to_bottom + HEIGHT), (middle, from_bottom)
    height = from_bottom + HEIGHT / 2
    if from_left < to_left:
        return (to_left, height), (from_left + from_width, height)
    return (to_left + to_width, height), (from_left, height)


def _draw_words(axes: Axes, left: float, height: float) -> None:
    """The words of box 3 in two lines, darker if they are more important."""
    for line, words in enumerate(WORDS):
        x = left
        for word, rank in words:
            background, colour = rank_colours(rank)
            width = 0.08 * len(word) + 0.08
            box = {"facecolor": background, "edgecolor": "none", "boxstyle": "square,pad=0.2"}
            centre = (x + width / 2, height - 0.36 * line)
            axes.text(*centre, word, ha="center", va="center", size=8.5, color=colour, bbox=box)
            x += width + 0.14


def gradient_figure(pull: Sequence[float], prompt_tokens: int) -> Figure:
    """The size of the gradient for each token of a training row that is predicted, the prompt shaded.

    Args:
        pull: one size for each token but the row's first, which nothing predicts.
        prompt_tokens: how many tokens of the row are the prompt.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 2.6))
        axes.bar(range(1, len(pull) + 1), pull, color="#0173b2", width=0.9)
        axes.axvspan(0, prompt_tokens - 0.5, color="0.9")
        axes.text(prompt_tokens / 2, 0.8 * max(pull), "prompt: no gradient", ha="center", color="0.3")
        axes.set(
            xlabel="position of the token that is predicted", ylabel="size of the gradient", xlim=(0, len(pull) + 1)
        )
    return figure


def answers_figure(answers: pd.DataFrame) -> Figure:
    """Tokens of one problem's chain at each ratio that was asked for, by two models.

    Args:
        answers: a row for each ratio; columns ratio, untrained_tokens and tokens (TokenSkip's).
    """
    styles = method_styles(["original", "tokenskip"])
    answers = answers.sort_values("ratio")
    whole = answers["untrained_tokens"].iloc[-1]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        axes.plot(answers["ratio"], whole * answers["ratio"], "--", color="0.5", linewidth=1)
        last = answers.iloc[0]
        axes.annotate(
            "exactly the ratio",
            (last["ratio"], whole * last["ratio"]),
            (0, -14),
            textcoords="offset points",
            color="0.4",
        )
        for method, column, name in (
            ("original", "untrained_tokens", "before TokenSkip's training"),
            ("tokenskip", "tokens", "after it"),
        ):
            colour, marker = styles[method]
            axes.plot(answers["ratio"], answers[column], marker=marker, color=colour)
            axes.annotate(name, (last["ratio"], last[column]), (0, 9), textcoords="offset points", color=colour)
        axes.set(xlabel="ratio asked for", ylabel="tokens of the chain", ylim=(0, 1.15 * whole))
        axes.invert_xaxis()
    return figure


def answers_slider(answers: pd.DataFrame) -> str:
    """The same answers as HTML under a slider, which needs no kernel. Texts are escaped.

    A page that runs no scripts, like GitHub's, shows one answer and no slider.

    Args:
        answers: a row for each ratio, in the order of the slider; columns ratio, tokens and chain.

    Example:
        >>> page = answers_slider(pd.DataFrame({"ratio": [1.0, 0.5], "tokens": [9, 4], "chain": ["a < b", "a"]}))
        >>> "a &lt; b" in page, page.count("<pre")
        (True, 2)
    """
    moved = (
        "const box = this.closest('div'); box.querySelectorAll('section[data-place]').forEach("
        "part => { part.style.display = part.dataset.place === this.value ? '' : 'none'; });"
    )
    last = len(answers) - 1
    parts = [
        f'<label>ratio {answers["ratio"].iloc[0]:g} <input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="ratio asked for" oninput="{moved}"> {answers["ratio"].iloc[-1]:g}</label>'
    ]
    for place, (ratio, tokens, chain) in enumerate(answers[["ratio", "tokens", "chain"]].itertuples(index=False)):
        style = "" if place == last else ' style="display: none"'
        parts.append(
            f'<section data-place="{place}"{style}><b>asked for {ratio:g}: {tokens} tokens</b>'
            f'<pre style="{CHAIN_STYLE}; min-height: 4em">{escape(chain)}</pre></section>'
        )
    return text_block("slider", "".join(parts), "margin: 8px 0")
