"""Figures of importance: which parts of a chain score high, and which of them are kept at a ratio.

Each function takes a DataFrame of `evaluation.importance_tables` (or scored chains) and returns a matplotlib Figure.
Text of models is never read as mathematics.
"""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.evaluation.exact_importance import TOP
from tokenskip_lib.evaluation.importance_tables import kind_ranks
from tokenskip_lib.figures.style import (
    KIND_COLOURS,
    OUTCOME_COLOURS,
    SCORER_COLOURS,
    STYLE,
    colours_of,
)
from tokenskip_lib.pruning.display import DARKEST, importance_ranks, rank_colours

STRIP_COLUMNS = 92  # characters a line
# Of DejaVu Sans Mono, in font sizes: a letter's width, and how far the baseline is below the middle of a line.
_MONOSPACE_WIDTH, _BASELINE = 0.602, (1556 - 492) / 2 / 2048
_COLOURS = colormaps["YlOrBr"]  # those of display.rank_colours


def importance_strip(chains: Sequence[ScoredChain]) -> Figure:
    """One chain as text, each span coloured by its importance rank; one panel a scorer.

    Ranks within the chain, not raw scores: scorers have different units.

    Args:
        chains: the same chain scored by one or more scorers.
    """
    layouts = [_lay_out(chain.text, chain.spans) for chain in chains]
    lines = [max(row for row, _, _ in layout) + 1 for layout in layouts]
    columns = max(column + len(piece) for layout in layouts for _, column, piece in layout)
    width = 9.0
    size = 0.85 * width * 72 / max(columns, 60) / _MONOSPACE_WIDTH
    font = FontProperties(family="DejaVu Sans Mono", size=size)
    height = sum(lines) * 1.6 * size / 72 + 0.4 * len(chains) + 0.6
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(
            len(chains), 1, figsize=(width, height), height_ratios=lines, squeeze=False, layout="constrained"
        )
        for axes, chain, layout, count in zip(panels[:, 0], chains, layouts, lines, strict=True):
            ranks = importance_ranks(chain.importance)
            colours = [rank_colours(ranks[span]) for span in layout.values()]
            boxes = [[(x, y), (x + len(piece), y), (x + len(piece), y + 1), (x, y + 1)] for y, x, piece in layout]
            axes.add_collection(PolyCollection(boxes, facecolors=[back for back, _ in colours], linewidths=0))
            axes.add_artist(_Pieces(list(layout), [colour for _, colour in colours], font))
            axes.set(xlim=(0, max(columns, 60)), ylim=(count, 0))
            axes.set_title(chain.scorer, parse_math=False)
            axes.axis("off")
        scale = plt.cm.ScalarMappable(cmap=_COLOURS, norm=plt.Normalize(0, 1 / DARKEST))
        bar = figure.colorbar(
            scale, ax=panels[:, 0].tolist(), location="bottom", aspect=50, pad=0.02, boundaries=np.linspace(0, 1, 101)
        )
        bar.set_ticks([0, 0.5, 1], labels=["least important", "importance rank in the chain", "most important"])
    return figure


def agreement_figure(table: pd.DataFrame) -> Figure:
    """How far each scorer agrees with importance that was measured: rank correlation, and overlap of the top.

    Args:
        table: what `evaluation.exact_importance.agreement_table` returns.
    """
    order = table.groupby("scorer")["correlation"].mean().sort_values().index
    panels = [("correlation", "rank correlation, 95% interval", 0.0), ("overlap", f"overlap of the top {TOP:.0%}", TOP)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8, 0.4 * len(order) + 1.6), sharey=True)
        for axis, (name, label, chance) in zip(axes, panels, strict=True):
            for number, (truth, colour) in enumerate(colours_of(table["truth"], SCORER_COLOURS).items()):
                rows = table[table["truth"] == truth]
                rows = rows.set_index("scorer").reindex(order)
                heights = np.arange(len(order)) + 0.12 * (1 - 2 * number)
                errors = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
                axis.errorbar(
                    rows[name], heights, xerr=errors, fmt="os"[number % 2], color=colour, markersize=5,
                    capsize=2, elinewidth=0.8, label=f"against {truth}",
                )  # fmt: skip
            axis.axvline(chance, color="0.4", linestyle="--", linewidth=1)
            axis.set_xlabel(f"{label}\n(dashed: chance)")
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(-0.6, len(order) - 0.4)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
        # Room between the last tick of one panel and the first of the other.
        figure.set_layout_engine("constrained", wspace=0.06)
    return figure


def kind_figure(table: pd.DataFrame) -> Figure:
    """Which kinds of span score high, one bar a scorer.

    Args:
        table: columns id (of the chain), scorer, kind, rank (importance rank within the chain, 0 to 1), one row a span.
    """
    ranks = kind_ranks(table, seed=0)
    scorers = list(ranks["scorer"].unique())
    first = ranks[ranks["scorer"] == scorers[0]]
    order = list(first.sort_values("rank")["kind"])  # upwards: the most important kind is on top
    height = 0.8 / len(scorers)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 6))
        for number, (scorer, colour) in enumerate(colours_of(scorers, SCORER_COLOURS).items()):
            rows = ranks[ranks["scorer"] == scorer].set_index("kind").reindex(order)
            axes.barh(
                np.arange(len(order)) + 0.4 - height * (number + 0.5),
                rows["rank"],
                height,
                xerr=[rows["rank"] - rows["low"], rows["high"] - rows["rank"]],
                color=colour,
                error_kw={"elinewidth": 1},
                label=scorer,
            )
        axes.axvline(0.5, color="0.25", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(order)), order)
        axes.set(xlabel="mean importance rank in the chain (0.5 = no preference)", xlim=(0, 1))
        axes.set_title("Which kinds of token score high")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def correlation_figure(correlations: pd.DataFrame) -> Figure:
    """Rank correlation of every two scorers.

    Args:
        correlations: S x S, scorers on both axes, -1 to 1.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(2.2 + 0.75 * len(correlations), 1.4 + 0.6 * len(correlations)))
        sns.heatmap(correlations, vmin=-1, vmax=1, cmap="PuOr", annot=True, fmt=".2f", square=True, cbar=False, ax=axes)
        axes.set(xlabel=None, ylabel=None, title="Rank correlation of scorers, within chains")
        plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
        plt.setp(axes.get_yticklabels(), rotation=0)
    return figure


def kept_kinds_figure(table: pd.DataFrame) -> Figure:
    """How much of each kind of span is kept at each ratio, one panel a scorer.

    Args:
        table: columns scorer, ratio, kind and kept (bool), one row a span and ratio.
    """
    shares = table.groupby(["scorer", "ratio", "kind"], sort=False)["kept"].mean().reset_index()
    kinds = sorted(shares["kind"].unique())
    scorers = shares["scorer"].unique()
    columns = min(3, len(scorers))
    rows = -(-len(scorers) // columns)
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(
            rows, columns, figsize=(0.6 + 2.9 * columns, 0.7 + 2.5 * rows), sharex=True, sharey=True, squeeze=False
        )
        for axes, scorer in zip(panels.flat, scorers, strict=False):
            for kind, colour in colours_of(kinds, KIND_COLOURS).items():
                line = shares[(shares["scorer"] == scorer) & (shares["kind"] == kind)].sort_values("ratio")
                axes.plot(line["ratio"], line["kept"], marker="o", markersize=3, color=colour, label=kind)
            axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
            axes.set(title=scorer, xlim=(shares["ratio"].min() - 0.05, 1.02), ylim=(0, 1.02))
        for number in range(len(scorers), panels.size):
            panels.flat[number].axis("off")
            panels.flat[number - columns].xaxis.set_tick_params(labelbottom=True)  # the lowest of its column
        figure.supxlabel("ratio (fraction of tokens kept)", fontsize=10)
        figure.supylabel("share of the kind that is kept", fontsize=10)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def kept_skipped_figure(table: pd.DataFrame, ratio: float) -> Figure:
    """Importance of the spans that are kept against those that are skipped at one ratio, one panel a scorer.

    The outer 1% on either side is drawn at the ends; on a logarithmic axis zeros are drawn at its left end.

    Args:
        table: columns scorer, ratio, rank (of importance in the chain), importance and kept (bool).

    Source: TokenSkip (arXiv:2502.12067), figure 7.
    """
    chosen = table[np.isclose(table["ratio"], ratio)]
    scorers = chosen["scorer"].unique()
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(1, len(scorers), figsize=(1 + 3.2 * len(scorers), 3.2), squeeze=False)
        for axes, scorer in zip(panels[0], scorers, strict=True):
            scores = chosen[chosen["scorer"] == scorer]
            low, high = scores["importance"].quantile([0.01, 0.99])
            if low == 0:  # what the model foresees for certain
                low = scores.loc[scores["importance"] > 0, "importance"].quantile(0.01)
            logarithmic = bool(low > 0 and high > 100 * low)
            sns.histplot(
                scores.assign(
                    importance=scores["importance"].clip(low, high), state=np.where(scores["kept"], "kept", "skipped")
                ),
                x="importance",
                hue="state",
                hue_order=["kept", "skipped"],
                palette=[OUTCOME_COLOURS["kept"], OUTCOME_COLOURS["skipped"]],
                bins=40,
                log_scale=logarithmic,
                element="step",
                stat="proportion",
                ax=axes,
            )
            axes.set(
                title=f"{scorer}, ratio {ratio:g}",
                xlabel="importance (log scale)" if logarithmic else "importance",
                ylabel="share of spans",
            )
            sns.move_legend(axes, "best", title=None, frameon=False)
    return figure


def disagreement_figure(table: pd.DataFrame) -> Figure:
    """The frequent spans on which scorers differ most: each scorer's mean rank, a row a span.

    Args:
        table: what `evaluation.importance_tables.disagreement_table` returns.
    """
    counts, means = table["times"][::-1], table.drop(columns="times")[::-1]
    scorers = means.columns
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 1 + 0.4 * len(means)))
        places = range(len(means))
        axes.hlines(places, means.min(axis=1), means.max(axis=1), color="0.8", linewidth=2, zorder=1)
        # Markers are a little above or below their line, so that none hides another.
        heights = np.linspace(0.26, -0.26, len(scorers))
        for height, (scorer, colour), marker in zip(
            heights, colours_of(scorers, SCORER_COLOURS).items(), cycle("osD^vPX*"), strict=False
        ):
            axes.scatter(
                means[scorer], np.array(places) + height, color=colour, marker=marker, s=22, label=scorer, zorder=2
            )
        labels = [f"{span}  ({counts[span]:.0f}x)" for span in means.index]
        axes.set_yticks(places, labels, family="DejaVu Sans Mono", parse_math=False)
        axes.axvline(0.5, color="0.5", linestyle="--", linewidth=1)
        axes.set(xlim=(0, 1), xlabel="mean importance rank in the chain", title="Where scorers disagree most")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _lay_out(text: str, spans: Sequence[tuple[int, int]]) -> dict[tuple[int, int, str], int]:
    """Wrap a text at STRIP_COLUMNS: (line, column, piece) -> index of its span."""
    layout, row, column, end = {}, 0, 0, 0
    for index, (start, stop) in enumerate(spans):
        gap = text[end:start]
        if "\n" in gap:
            row, column = row + 1, len(gap) - gap.rfind("\n") - 1
        else:
            column += len(gap)
        if column + (stop - start) > STRIP_COLUMNS:
            row, column = row + 1, 0
        layout[row, column, text[start:stop]] = index
        column, end = column + stop - start, stop
    return layout


class _Pieces(Artist):
    """All pieces of a laid out text as one artist: matplotlib spends a minute on 10,000 artists.

    Args:
        pieces: (line, column, text) of each, in the data's units; a line is one unit high.
        colours: one colour a piece.
    """

    def __init__(self, pieces: Sequence[tuple[int, int, str]], colours: Sequence[str], font: FontProperties):
        super().__init__()
        self.set(zorder=3, in_layout=False)  # above the backgrounds; all pieces are inside the axes
        self.pieces, self.colours, self.font = pieces, colours, font

    def draw(self, renderer: RendererBase) -> None:
        assert self.axes is not None
        places = self.axes.transData.transform([(column, row + 0.5) for row, column, _ in self.pieces])
        places[:, 1] -= np.multiply(_BASELINE, renderer.points_to_pixels(self.font.get_size_in_points()))
        if renderer.flipy():
            places[:, 1] = renderer.get_canvas_width_height()[1] - places[:, 1]
        context = renderer.new_gc()
        for (_, _, text), colour, (x, y) in zip(self.pieces, self.colours, places, strict=True):
            context.set_foreground(colour)
            renderer.draw_text(context, x, y, text, self.font, 0, ismath=False)
        context.restore()
