"""Figures of studies: several trainings, or several ways to ask one, side by side."""

from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tokenskip_lib.evaluation.token_complexity import ONE_RATIO, ORACLE, SHUFFLED
from tokenskip_lib.figures.style import PALETTE, SCORER_COLOURS, STYLE, name_curves


def scorers_figure(table: pd.DataFrame, original: float) -> Figure:
    """Accuracy and actual ratio of models that were trained on chains pruned by different scorers.

    Args:
        table: a row for each scorer and choice of spans to keep first. Columns scorer, kept, ratio (the same
            request in all rows), and from metrics.csv accuracy and actual_ratio with their intervals.
        original: the target model's own accuracy, a fraction.
    """
    order = table.groupby("scorer")["accuracy"].max().sort_values().index
    kinds = list(dict.fromkeys(table["kept"]))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8, 0.5 * len(order) + 1.2), sharey=True, width_ratios=[3, 2])
        for number, kind in enumerate(kinds):
            rows = table[table["kept"] == kind].set_index("scorer").reindex(order)
            heights = np.arange(len(order)) + 0.14 * (2 * number - len(kinds) + 1)
            accuracy = 100 * rows["accuracy"]
            errors = [accuracy - 100 * rows["accuracy_low"], 100 * rows["accuracy_high"] - accuracy]
            style = {"color": PALETTE[number], "fmt": "osD"[number % 3], "markersize": 5}
            axes[0].errorbar(accuracy, heights, xerr=errors, capsize=2, elinewidth=0.8, **style)
            top = int(np.flatnonzero(accuracy.notna())[-1])  # where the kind is named
            end, side, gap = ("accuracy_high", "left", 6) if accuracy.iloc[top] < 45 else ("accuracy_low", "right", -6)
            place = (100 * rows[end].iloc[top], heights[top])
            axes[0].annotate(kind, place, xytext=(gap, 0), textcoords="offset points", color=PALETTE[number],
                             ha=side, va="center")  # fmt: skip
            ends = [rows["actual_ratio"] - rows["actual_ratio_low"], rows["actual_ratio_high"] - rows["actual_ratio"]]
            axes[1].errorbar(rows["actual_ratio"], heights, xerr=ends, capsize=2, elinewidth=0.8, **style)
        axes[0].axvline(100 * original, color="black", linestyle="--", linewidth=1)
        axes[0].annotate("original ", (100 * original, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
        axes[1].axvline(table["ratio"].iloc[0], color="0.4", linestyle="--", linewidth=1)
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(-0.6, len(order) - 0.4)
        axes[0].set(
            xlabel="accuracy (%), 95% interval", title=f"Trained on chains pruned to {table['ratio'].iloc[0]:g}"
        )
        axes[1].set(xlabel="actual ratio (dashed: the request)", title="What it writes")
    return figure


def control_figure(table: pd.DataFrame) -> Figure:
    """Actual against requested ratio for growing numbers of training rows, and the mean distance between the two.

    Args:
        table: a row for each training and ratio. Columns training (a name for everything but the number of
            rows), rows_trained, ratio, and from metrics.csv actual_ratio with its interval.
    """
    trainings = list(dict.fromkeys(table["training"]))
    shades = sns.color_palette("viridis_r", table.loc[table["training"] == trainings[0], "rows_trained"].nunique())
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, figsize=(7.5, 7.6))
        axes[0].plot([0.45, 1], [0.45, 1], color="0.4", linestyle="--", linewidth=1)
        first, ends = table[table["training"] == trainings[0]], []
        for shade, (rows, group) in zip(shades, first.groupby("rows_trained"), strict=True):
            group = group.sort_values("ratio")
            axes[0].plot(group["ratio"], group["actual_ratio"], marker="o", color=shade)
            axes[0].fill_between(
                group["ratio"],
                group["actual_ratio_low"],
                group["actual_ratio_high"],
                color=shade,
                alpha=0.15,
                linewidth=0,
            )
            end = group.iloc[-1]
            ends.append((end["actual_ratio"], f"{rows:,} rows", shade, end["ratio"]))
        axes[0].set(xlabel="requested ratio", ylabel="actual ratio", title=trainings[0])
        name_curves(axes[0], ends)
        errors = table.assign(error=(table["actual_ratio"] - table["ratio"]).abs())
        error = errors.groupby(["training", "rows_trained"], sort=False)["error"].mean()
        names = []
        for number, training in enumerate(trainings):
            curve, style = error[training].sort_index(), {"marker": "osD^vP"[number % 6], "color": PALETTE[number]}
            # Hollow and each larger than the last, so that markers at one place can all be seen.
            axes[1].plot(curve.index, curve, markersize=6 + 2 * number, mfc="none", linewidth=1.4, **style)
            names.append((curve.iloc[-1], training, PALETTE[number], curve.index[-1]))
        axes[1].set_xscale("log")
        axes[1].set_xticks(_apart(table["rows_trained"]))
        axes[1].xaxis.set_major_formatter("{x:,.0f}")
        axes[1].xaxis.set_minor_locator(NullLocator())
        axes[1].set(xlabel="training rows", ylabel="mean |actual - requested ratio|", title="Distance from the request")
        axes[1].set_ylim(0, None)
        name_curves(axes[1], names)
    return figure


def by_ratio_figure(curves: Mapping[str, pd.DataFrame], ylabel: str, title: str, *, diagonal: bool = False) -> Figure:
    """A number against the requested ratio, a line a curve.

    Args:
        curves: name -> columns ratio and value, and low and high if there is an interval to draw. A missing
            value is left out.
        diagonal: also draw the line value = ratio.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        ratios = pd.concat(curves.values())["ratio"]
        if diagonal:
            axes.plot(
                [ratios.min(), ratios.max()], [ratios.min(), ratios.max()], color="0.4", linestyle="--", linewidth=1
            )
        names, free = [], dict(zip(curves, cycle(PALETTE), strict=False))
        for number, (name, curve) in enumerate(curves.items()):
            curve, colour = curve.dropna(subset="value").sort_values("ratio"), SCORER_COLOURS.get(name, free[name])
            if curve.empty:
                continue
            axes.plot(curve["ratio"], curve["value"], marker="osD^vP"[number % 6], color=colour, linewidth=1.4)
            names.append((curve["value"].iloc[-1], name, colour, curve["ratio"].iloc[-1]))
            if "low" in curve:
                axes.fill_between(curve["ratio"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
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


def _apart(values: pd.Series) -> list[float]:
    """The values that are far enough apart for labels on a logarithmic axis."""
    kept: list[float] = []
    for value in sorted(values.unique()):
        if not kept or value > 1.3 * kept[-1]:
            kept.append(value)
    return kept
