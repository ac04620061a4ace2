"""Figures of studies: several trainings, or several ways to ask one, side by side."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from tokenskip_lib.evaluation.token_complexity import ONE_RATIO, ORACLE, SHUFFLED
from tokenskip_lib.figures.style import PALETTE, SCORER_COLOURS, STYLE, name_curves

PANELS_A_LINE = 4


def scorers_figure(table: pd.DataFrame, original: float) -> Figure:
    """Accuracy and actual ratio of models that were trained on chains pruned by different scorers.

    Args:
        table: a row for each scorer and choice of spans to keep first. Columns scorer, kept, ratio (the same
            request in all rows), and from metrics.csv accuracy and actual_ratio with their intervals.
        original: the target model's own accuracy, a fraction.
    """
    order = table.groupby("scorer")["accuracy"].max().sort_values().index
    kinds = list(dict.fromkeys(table["kept"]))
    shades = sns.color_palette("viridis_r", len(kinds) + 1)[1:]  # the more is kept first, the darker
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8, 0.5 * len(order) + 1.6), sharey=True, width_ratios=[3, 2])
        for number, kind in enumerate(kinds):
            rows = table[table["kept"] == kind].set_index("scorer").reindex(order)
            heights = np.arange(len(order)) + 0.14 * (2 * number - len(kinds) + 1)
            accuracy = 100 * rows["accuracy"]
            errors = [accuracy - 100 * rows["accuracy_low"], 100 * rows["accuracy_high"] - accuracy]
            style = {"color": shades[number], "fmt": "osD"[number % 3], "markersize": 5, "label": kind}
            axes[0].errorbar(accuracy, heights, xerr=errors, capsize=2, elinewidth=0.8, **style)
            ends = [rows["actual_ratio"] - rows["actual_ratio_low"], rows["actual_ratio_high"] - rows["actual_ratio"]]
            axes[1].errorbar(rows["actual_ratio"], heights, xerr=ends, capsize=2, elinewidth=0.8, **style)
        axes[0].axvline(100 * original, color="black", linestyle="--", linewidth=1)
        axes[0].annotate("original ", (100 * original, 0.01), xycoords=("data", "axes fraction"), ha="right")
        axes[1].axvline(table["ratio"].iloc[0], color="0.4", linestyle="--", linewidth=1)
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(-0.6, len(order) - 0.4)
        axes[0].set(
            xlabel="accuracy (%), 95% interval", title=f"Trained on chains pruned to {table['ratio'].iloc[0]:g}"
        )
        axes[1].set(xlabel="actual ratio (dashed: the request)", title="What it writes")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(kinds), frameon=False)
    return figure


def control_figure(table: pd.DataFrame) -> Figure:
    """Actual against requested ratio, a panel for each number of training rows; and every training's mean distance.

    Args:
        table: a row for each training and ratio. Columns training (a name for everything but the number of
            rows), rows_trained, ratio, and from metrics.csv actual_ratio with its interval. The panels show the
            first training.
    """
    name = table["training"].iloc[0]
    panels = list(table[table["training"] == name].groupby("rows_trained"))
    distances = table.assign(distance=(table["actual_ratio"] - table["ratio"]).abs())
    distance = distances.groupby(["training", "rows_trained"], sort=False)["distance"].mean()
    with plt.style.context(STYLE):
        lines = -(-len(panels) // PANELS_A_LINE)
        heights = [1 + 2 * lines, 1 + 0.28 * len(distance)]
        figure = plt.figure(figsize=(9, sum(heights)))
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        grid = upper.subplots(lines, min(len(panels), PANELS_A_LINE), sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (rows, group) in zip(grid, panels, strict=False):
            group = group.sort_values("ratio")
            ends = _lengths(group["actual_ratio"], group["actual_ratio_low"], group["actual_ratio_high"])
            axes.plot([0.45, 1.05], [0.45, 1.05], color="0.4", linestyle="--", linewidth=1)
            axes.errorbar(group["ratio"], group["actual_ratio"], ends, marker="o", capsize=2, elinewidth=0.8,
                          linewidth=1.4, color=PALETTE[0])  # fmt: skip
            axes.set_title(f"{rows:,} rows", fontsize="medium")
        upper.supylabel("actual ratio", fontsize="medium")
        upper.supxlabel("requested ratio", fontsize="medium")
        upper.suptitle(f"What is written: {name}", x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
        axes, places = lower.subplots(), range(len(distance))
        axes.hlines(places, 0, distance, color="0.8", linewidth=2)
        colours = [PALETTE[0] if training == name else "0.4" for training, _ in distance.index]
        axes.scatter(distance, places, color=colours, s=36, zorder=3)
        for place, value in zip(places, distance, strict=True):
            axes.annotate(f"{value:.3f}", (value, place), (7, 0), textcoords="offset points", va="center",
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        axes.set_yticks(places, [f"{training}, {rows:,} rows" for training, rows in distance.index], parse_math=False)
        axes.set(
            xlim=(0, 1.12 * distance.max()), xlabel="mean |actual - requested ratio|", title="Distance from the request"
        )
        axes.invert_yaxis()
    return figure


def loss_figure(table: pd.DataFrame) -> Figure:
    """Points lost against the rows that an adapter went on learning from, a line for each requested ratio.

    Args:
        table: columns rows, ratio, and points from the target model's accuracy with points_low and points_high.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        for number, (ratio, rows) in enumerate(table.sort_values("rows").groupby("ratio")):
            errors = _lengths(rows["points"], rows["points_low"], rows["points_high"])
            places = rows["rows"] + 40 * number  # no error bar hides another
            axes.errorbar(places, rows["points"], errors, fmt="os"[number % 2] + "-", color=PALETTE[number], capsize=2,
                          elinewidth=0.8, linewidth=1.4, markersize=5, label=f"asked for {ratio:g}")  # fmt: skip
        axes.axhline(0, color="black", linestyle=":", linewidth=1)
        axes.annotate("target model", (0, 0), (0, 3), textcoords="offset points")
        axes.set(xlabel="rows on top of the first adapter", ylabel="points of accuracy, 95% interval")
        axes.legend(loc="lower right")
    return figure


def by_ratio_figure(
    curves: Mapping[str, pd.DataFrame],
    ylabel: str,
    title: str,
    *,
    diagonal: bool = False,
    styles: Mapping[str, dict] | None = None,
) -> Figure:
    """A number against the requested ratio, a line a curve; intervals as error bars.

    Curves with intervals at the same ratios are moved a little sideways, so that no error bar hides another.

    Args:
        curves: name -> columns ratio and value, and low and high if there is an interval to draw. A missing
            value is left out.
        diagonal: also draw the line value = ratio.
        styles: name -> what matplotlib takes for a line. A scorer has a colour of its own, and other curves the
            next free one.
    """
    free = cycle(PALETTE)
    ratios = pd.concat(curves.values())["ratio"]
    uncertain = [name for name, curve in curves.items() if "low" in curve and curve["low"].notna().any()]
    shared = pd.Series([ratio for name in uncertain for ratio in curves[name]["ratio"]]).duplicated().any()
    step = 0.1 * np.diff(sorted(ratios.unique())).min(initial=1) if shared else 0
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        if diagonal:
            axes.plot(
                [ratios.min(), ratios.max()], [ratios.min(), ratios.max()], color="0.4", linestyle="--", linewidth=1
            )
        names = []
        for number, (name, curve) in enumerate(curves.items()):
            curve = curve.dropna(subset="value").sort_values("ratio")
            if curve.empty:
                continue
            style: dict[str, Any] = {"marker": "osD^vP"[number % 6], "linewidth": 1.4, "markersize": 5}
            style |= {"color": SCORER_COLOURS.get(name) or next(free)} | dict((styles or {}).get(name, {}))
            places = curve["ratio"]
            if name in uncertain:
                places = places + step * (uncertain.index(name) - (len(uncertain) - 1) / 2)
                axes.errorbar(
                    places,
                    curve["value"],
                    _lengths(curve["value"], curve["low"], curve["high"]),
                    capsize=2,
                    elinewidth=0.8,
                    **style,
                )
            else:
                axes.plot(places, curve["value"], **style)
            names.append((curve["value"].iloc[-1], name, style["color"], places.iloc[-1]))
        axes.set_xticks(sorted(ratios.unique()))
        axes.set(xlabel="requested ratio", ylabel=ylabel, title=title)
        name_curves(axes, names)
    return figure


def choices_figure(choices: pd.DataFrame, policy: pd.DataFrame) -> Figure:
    """Accuracy against mean chain tokens for ways to choose ratios: one for all, a predictor's, and an oracle's.

    Args:
        choices: the columns of ChoiceRow. One ratio for all has intervals and its ratios; an oracle has a band.
        policy: columns tokens and accuracy of a ratio predicted for each problem; may be empty.
    """
    styles = {ORACLE: ("black", "-"), SHUFFLED: ("0.5", "--"), ONE_RATIO: (PALETTE[0], "-")}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.6))
        names = []
        for name, (colour, line) in styles.items():
            rows = choices[choices["choice"] == name].sort_values(["tokens", "accuracy"])
            heights, tokens = 100 * rows[["accuracy", "accuracy_low", "accuracy_high"]], rows["tokens"]
            low, middle, high = heights["accuracy_low"], heights["accuracy"], heights["accuracy_high"]
            if name == ONE_RATIO:
                axes.errorbar(tokens, middle, [middle - low, high - middle], color=colour, marker="o", capsize=2,
                              elinewidth=0.8, linewidth=1.4, zorder=3)  # fmt: skip
                for ratio, place, height in zip(rows["ratio"], tokens, middle, strict=True):
                    axes.annotate(f"{ratio:g}", (place, height), (4, -11), textcoords="offset points", fontsize=8,
                                  color=colour)  # fmt: skip
            else:
                axes.plot(tokens, middle, line, color=colour, linewidth=1.4)
                axes.fill_between(tokens, low, high, color=colour, alpha=0.12, linewidth=0)
            names.append((middle.iloc[-1], name, colour, tokens.iloc[-1]))
        if len(policy):
            rows = policy.sort_values("tokens")
            axes.plot(rows["tokens"], 100 * rows["accuracy"], "s--", color=PALETTE[1], linewidth=1.4, markersize=5)
            names.append((100 * rows["accuracy"].iloc[-1], "predicted ratio", PALETTE[1], rows["tokens"].iloc[-1]))
        axes.set(xlabel="chain tokens, mean over problems", ylabel="accuracy (%)", title="A ratio for each problem")
        name_curves(axes, names)
    return figure


def _lengths(values: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """The two lengths of error bars; of a few problems, an interval may end beside its value."""
    return [(values - low).clip(lower=0), (high - values).clip(lower=0)]
