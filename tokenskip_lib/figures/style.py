"""Colours, markers and labels that all figures share, and how a figure is written."""

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from tokenskip_lib.core.store import write_json, write_whole
from tokenskip_lib.evaluation.methods import METHODS

PALETTE = sns.color_palette("colorblind")
# For methods that state no style of their own, such as "random pruning" in notebook 06.
FREE_COLOURS = [PALETTE[number] for number in (7, 9, 6, 8)]
FREE_MARKERS = "v8Hx+"
# A scorer, a kind of span and what became of a chain or span have the same colour in every figure.
SCORER_COLOURS = {
    "selective_context": "#0173b2", "llmlingua2": "#029e73", "cts": "#cc78bc", "gogi": "#d55e00", "mist": "#ca9161",
    "leave_one_out": "#56b4e9", "leave_one_out_rest": "#332288", "entropy": "#999933", "gogi_skip": "#661100",
    "random": "0.35", "position": "0.65",
}  # fmt: skip
KIND_COLOURS = {
    "number": "#882255", "operator": "#332288", "name": "#44aa99", "word": "#117733", "connective": "#ddcc77",
    "punctuation": "0.6",
}  # fmt: skip
OUTCOME_COLOURS = {"kept": "#44aa99", "skipped": "0.6", "wrong": "#cc3311"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # the characters that XML lacks
STYLE = str(resources.files("tokenskip_lib.figures") / "style.mplstyle")


def method_styles(names: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Colour and marker of each method's curve.

    A registered method states its own (evaluation.methods). Any other name, and a method that states none,
    gets the next free colour and marker, in the order of `names`.

    Args:
        names: the methods of one figure; a name may come more than once.
    """
    styles: dict[str, tuple[Any, str]] = {}
    colours, markers = cycle(FREE_COLOURS), cycle(FREE_MARKERS)
    for name in dict.fromkeys(names):
        method = METHODS.get(name)
        colour = method.colour if method is not None else ""
        marker = method.marker if method is not None else ""
        styles[name] = (colour or next(colours), marker or next(markers))
    return styles


def colours_of(names: Iterable[str], known: Mapping[str, str]) -> dict[str, Any]:
    """The colour of each name: the known one, or else the next free colour.

    Example:
        >>> colours_of(["random"], SCORER_COLOURS)
        {'random': '0.35'}
    """
    free = cycle(FREE_COLOURS)
    return {name: known.get(name) or next(free) for name in dict.fromkeys(names)}


def write_figure(figure: Figure, path: Path, origin: dict[str, Any]) -> None:
    """Write a figure as `path`, a .png, and as .svg; a .json beside them says what was drawn. The figure is closed.

    The text of a chain may hold control characters. The .svg has U+FFFD in their place, or no program would read it.

    Args:
        figure: closed afterwards, or a notebook would show it a second time.
        origin: what the .json says.
    """
    with plt.style.context(STYLE):
        png, svg = BytesIO(), BytesIO()
        figure.savefig(png, format="png")
        figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_whole(path, png.getvalue())
    write_whole(path.with_suffix(".svg"), _NOT_XML.sub("\ufffd", svg.getvalue().decode()).encode())
    write_json(path.with_suffix(".json"), origin)


def name_curves(axes: Axes, names: list[tuple]) -> None:
    """Write the names of curves in a column right of the axes, each tied to its curve by a thin line.

    Names come in the order of the curves' ends.

    Args:
        axes: the axes, with their final limits.
        names: (height of the curve's end, name, colour, x of the curve's end) of each curve.
    """
    low, high = axes.get_ylim()
    names = sorted(names, key=lambda name: name[0])
    gap = (high - low) / max(18, len(names))
    heights = np.clip([name[0] for name in names], low + gap / 2, high - gap / 2)
    for _ in range(200):  # neighbours that are too close push each other apart
        short = np.clip(gap - np.diff(heights), 0, None) / 2
        if not short.any():
            break
        heights[:-1] -= short
        heights[1:] += short
        heights = np.clip(heights, low + gap / 2, high - gap / 2)
    for (end, name, colour, right), height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            (right, end),
            xytext=(1.03, (height - low) / (high - low)),
            textcoords=axes.transAxes,
            color=colour,
            va="center",
            annotation_clip=False,
            parse_math=False,  # a name may be anyone's text
            arrowprops={  # dotted: not a part of the curve
                "arrowstyle": "-",
                "linestyle": (0, (1, 3)),
                "color": colour,
                "linewidth": 0.7,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
        )


def label_points(axes: Axes, labels: list[tuple]) -> None:
    """Write a short text beside each point, where it hides no point and no other text; without such a place, none.

    Args:
        axes: the axes, with everything else drawn.
        labels: (x, y, text, colour) of each point.
    """
    figure = axes.get_figure(root=True)
    if not labels or figure is None:
        return
    figure.draw_without_rendering()  # the layout decides where the points are
    point = figure.dpi / 72
    places = axes.transData.transform([label[:2] for label in labels])
    taken = [(x - 4 * point, y - 4 * point, x + 4 * point, y + 4 * point) for x, y in places]
    for (x, y), (*_, text, colour) in zip(places, labels, strict=True):
        width, height = 5.5 * len(text), 8
        for right, up in ((5, -13), (5, 5), (-5 - width, -13), (-5 - width, 5)):
            left, bottom = x + right * point, y + up * point
            box = (left, bottom, left + width * point, bottom + height * point)
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                continue
            axes.annotate(
                text, tuple(axes.transData.inverted().transform((x, y))), (right, up), textcoords="offset points",
                color=colour, fontsize=8, path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
            taken.append(box)
            break
