"""Colours, markers and labels that all figures share."""

from importlib import resources

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

PALETTE = sns.color_palette("colorblind")
METHOD_STYLE = {  # colour, marker
    "original": ("black", "*"),
    "tokenskip": (PALETTE[0], "o"),
    "random pruning": (PALETTE[7], "v"),
    "truncation": (PALETTE[3], "s"),
    "lc_prompt": (PALETTE[2], "^"),
    "be_concise": (PALETTE[1], "D"),
    "only_numbers": (PALETTE[4], "P"),
    "abbre_words": (PALETTE[5], "X"),
}
STYLE = str(resources.files("tokenskip_lib.figures") / "style.mplstyle")


def name_curves(axes: Axes, names: list[tuple]) -> None:
    """Names in a column right of the axes, in the order of the curves' ends, each tied to its own.

    Args:
        axes: with its final limits.
        names: (height of the curve's end, name, colour, where the curve ends on the right) of each.
    """
    low, high = axes.get_ylim()
    names = sorted(names, key=lambda name: name[0])
    gap = (high - low) / 18
    heights = np.clip([name[0] for name in names], low + gap / 2, high - gap / 2)
    for _ in range(200):  # neighbours that are too close push each other apart
        short = np.clip(gap - np.diff(heights), 0, None) / 2
        if not short.any():
            break
        heights[:-1] -= short
        heights[1:] += short
        heights = np.minimum(heights, high - gap / 2)
    for (end, name, colour, right), height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            (right, end),
            xytext=(1.03, (height - low) / (high - low)),
            textcoords=axes.transAxes,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)},
        )
