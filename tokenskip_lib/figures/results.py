"""One function per figure: records or a DataFrame in, a matplotlib Figure out; `Run.save_figure` writes it.

Text of models and problems is drawn as it is, without mathtext: `$18` stays `$18`.
"""

from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.figures.style import (
    OUTCOME_COLOURS,
    PALETTE,
    STYLE,
    colours_of,
    label_points,
    method_styles,
    name_curves,
)

Styles = dict[str, tuple[Any, str]]  # what `method_styles` returns
SHAPES = {"o": "○", "s": "□", "^": "△", "D": "◇"}  # markers that tell curves of one colour apart, and their signs


def chain_length_figure(chains: pd.DataFrame) -> Figure:
    """Histogram of chain lengths, coloured by outcome: kept, or the reason why a chain was dropped.

    Args:
        chains: columns chain_tokens and dropped (None if kept).
    """
    table, lengths = chains.assign(outcome=chains["dropped"].fillna("kept")), chains["chain_tokens"]
    order = ["kept", *sorted(set(table["outcome"]) - {"kept"})]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        sns.histplot(
            table,
            x="chain_tokens",
            hue="outcome",
            hue_order=order,
            multiple="stack",
            binwidth=max(1, round((lengths.max() - lengths.min()) / 15)),
            palette=colours_of(order, OUTCOME_COLOURS),
            edgecolor="white",
            ax=axes,
        )
        mean = table.loc[table["outcome"] == "kept", "chain_tokens"].mean()
        axes.axvline(mean, color="0.25", linestyle="--", linewidth=1)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.text(mean, axes.get_ylim()[1] * 0.98, f" mean of kept {mean:.0f}", va="top", color="0.25")
        axes.set(xlabel="chain tokens", ylabel="chains", title="How long the target model's chains are")
        sns.move_legend(axes, "upper right", title=None, frameon=False)
    return figure


def ratio_figure(table: pd.DataFrame, title: str) -> Figure:
    """Requested against actual ratio: one point a chain, and in print the ratio of all chains' tokens together.

    Args:
        table: columns ratio, tokens and original_tokens (the unpruned chain's).
    """
    sums = table.groupby("ratio")[["tokens", "original_tokens"]].sum()
    together = sums["tokens"] / sums["original_tokens"]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 4.2))
        jitter = np.random.default_rng(0).uniform(-0.012, 0.012, len(table))
        axes.plot([0.4, 1.05], [0.4, 1.05], color="0.4", linestyle="--", linewidth=1)
        axes.annotate("as requested", (1.05, 1.05), color="0.4", ha="right", va="bottom")
        own = table["tokens"] / table["original_tokens"].clip(lower=1)
        axes.scatter(table["ratio"] + jitter, own, s=8, alpha=0.35, color=PALETTE[0], linewidth=0, rasterized=True)
        axes.plot(together.index, together, marker="o", color="black", linewidth=0)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        for ratio, actual in together.items():
            axes.annotate(f"{actual:.2f}", (ratio, actual), xytext=(8, -12), textcoords="offset points", bbox=box)
        last = (together.index[-1], together.iloc[-1])
        axes.annotate("all together", last, xytext=(-10, 4), textcoords="offset points", ha="right", bbox=box)
        axes.set(xlabel="requested ratio", ylabel="actual ratio (target tokens)", title=title)
    return figure


def loss_figure(log: pd.DataFrame, longer: pd.DataFrame | None = None) -> Figure:
    """Training and held-out loss over optimiser steps; the legend has the last value of each curve.

    Args:
        log: columns step, loss and eval_loss (NaN if not measured), in nats per response token.
        longer: the log of another, longer training; its held-out loss is drawn behind, and the
            steps are then on a logarithmic axis.
    """
    curves = [(log, "loss", "training", "-", PALETTE[0]), (log, "eval_loss", "held out", "o-", PALETTE[1])]
    if longer is not None:
        curves.append((longer, "eval_loss", "held out, longer training", "o-", "0.6"))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        for number, (table, column, name, style, colour) in enumerate(curves):
            points = table.dropna(subset=[column]) if column in table else table[:0]
            if len(points):
                axes.plot(
                    points["step"], points[column], style, color=colour, markersize=4, linewidth=1.4,
                    label=f"{name}, at the end {points[column].iloc[-1]:.3f}", zorder=3 - 0.1 * number,
                )  # fmt: skip
        axes.set(xlabel="optimiser step", ylabel="loss (nats a response token)", title="Fine-tuning", ylim=(0, None))
        axes.legend(loc="upper right", frameon=False)  # losses fall, so this corner is free
        if longer is not None:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def accuracy_figure(
    metrics: pd.DataFrame, title: str, behind: pd.DataFrame | None = None, styles: Styles | None = None
) -> Figure:
    """Accuracy against chain tokens: one curve a method with its name, and 95% intervals. Dotted: the original.

    Two things keep points from hiding each other. Methods as long as the original have a panel of their own, a
    column each. A method far below all others is named below the curves if most of the axis would be empty for it.

    Args:
        metrics: the columns of metrics.csv. A method that evaluation does not know gets a free colour and marker.
        behind: rows to compare with, drawn hollow and behind: columns method, ratio, chain_tokens and accuracy (a
            fraction), and label, the curve's name. A row without a label is called published. Several labels of
            one method have a shape each, shown beside the name too, unless `styles` has them.
        styles: colour and marker of curves by method or label, in place of those of `method_styles`.
    """
    if behind is None or behind.empty:
        behind = metrics[:0]
    label = behind["method"] + ", published"
    behind = behind.assign(label=behind["label"].fillna(label) if "label" in behind else label)
    named = [*metrics["method"], *behind["method"]]
    styles = method_styles(named) | (styles or {})
    shapes = _shapes_behind(behind[~behind["label"].isin(styles)])
    everything = pd.concat([metrics.assign(label=metrics["method"]), behind])
    below, (low, high) = _range(everything)
    own = [rows for rows in _by_method(metrics) if rows["method"].iloc[0] not in below]
    level = _as_long_as_the_original(own)
    widths = [9, max(3, 1 + len(level))] if level else [9]  # the title needs 3
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(
            1, len(widths), sharey=True, squeeze=False, figsize=(9 if level else 8, 5), width_ratios=widths
        )
        axes = panels[0, 0]
        axes.set_ylim(low, high)
        curves = [_draw_method(axes, rows, styles) for rows in own if rows["method"].iloc[0] not in level]
        labelled = set(metrics["method"])  # a second curve of a method near the first would hide its ratios
        for rows in _by_method(behind, "label"):
            if rows["label"].iloc[0] not in below:
                shown = rows["method"].iloc[0] not in labelled
                curves.append(_draw_behind(axes, rows, styles, shapes.get(rows["label"].iloc[0]), ratios=shown))
                labelled |= set(rows["method"])
        for original in metrics.loc[metrics["method"] == "original", "accuracy"]:
            for panel in panels[0]:
                panel.axhline(100 * original, color="black", linestyle=":", linewidth=1, zorder=1)
        if level:
            _draw_columns(panels[0, 1], [rows for rows in own if rows["method"].iloc[0] in level], styles)
        if below:
            note = "; ".join(f"{name}, {_percent(everything[everything['label'] == name])}" for name in below)
            axes.annotate(f"↓ below this axis: {note}", (0.015, 0.025), xycoords="axes fraction", parse_math=False,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        axes.set_title(title, parse_math=False)
        axes.set(xlabel="chain tokens, mean over problems", ylabel="accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        name_curves(axes, [end for end, _ in curves])
        label_points(axes, [label for _, labels in curves for label in labels])
    return figure


def _range(rows: pd.DataFrame) -> tuple[list[str], tuple[float, float]]:
    """The curves that are too far below the others to be drawn with them, and the limits of the axis, in percent.

    Too far is a gap of at least 33 points that is larger than the range of the curves above it.

    Args:
        rows: columns label, accuracy, and accuracy_low and accuracy_high where there is an interval.
    """
    ends = [100 * rows[f"accuracy_{end}"].fillna(rows["accuracy"]) for end in ("low", "high")]
    curves = rows.assign(low=ends[0], high=ends[1]).groupby("label", sort=False).agg({"low": "min", "high": "max"})
    curves = curves.sort_values("low", kind="stable")
    top, gaps = curves["high"].max(), curves["low"].to_numpy()[1:] - curves["high"].cummax().to_numpy()[:-1]
    split = int(gaps.argmax()) + 1 if len(gaps) else 0
    if split and gaps.max() < max(33, top - curves["low"].iloc[split]):
        split = 0
    bottom = curves["low"].iloc[split]
    room = 0.06 * (top - bottom) + 0.5
    return list(curves.index[:split]), (bottom - room * (2.5 if split else 1), top + room)


def _percent(rows: pd.DataFrame) -> str:
    low, high = 100 * rows["accuracy"].min(), 100 * rows["accuracy"].max()
    return f"{low:.1f}%" if low == high else f"{low:.1f} to {high:.1f}%"


def _as_long_as_the_original(curves: list[pd.DataFrame]) -> list[str]:
    """The methods without an adapter that write as many tokens as the original in all of their rows."""
    lengths = {rows["method"].iloc[0]: rows["chain_tokens"].astype(float) for rows in curves}
    if "original" not in lengths:
        return []
    whole, near = lengths["original"].iloc[0], 0.015 * max(values.max() for values in lengths.values())
    others = [name for name in lengths if name != "original" and not (name in METHODS and METHODS[name].uses_adapter)]
    return [name for name in others if ((lengths[name] - whole).abs() < near).all()]


def _by_method(table: pd.DataFrame, column: str = "method") -> list[pd.DataFrame]:
    return [rows.sort_values("ratio") for _, rows in table.groupby(column, sort=False)]


def _errors(rows: pd.DataFrame) -> list[pd.Series]:
    return [100 * (rows["accuracy"] - rows["accuracy_low"]), 100 * (rows["accuracy_high"] - rows["accuracy"])]


def _draw_method(axes: Axes, rows: pd.DataFrame, styles: Styles) -> tuple[tuple, list[tuple]]:
    """Draw one method's curve; return its entries for `name_curves` and `label_points`."""
    method = rows["method"].iloc[0]
    known = METHODS.get(method)
    scaled = known is not None and known.scales_adapter
    colour, marker = styles[method]
    axes.errorbar(
        rows["chain_tokens"],
        100 * rows["accuracy"],
        yerr=_errors(rows),
        color=colour,
        marker=marker,
        capsize=2,
        markersize=11 if method == "original" else 6,
        elinewidth=0.8,
        linewidth=1.4,
        zorder=3 if method == "original" or (known is not None and known.uses_adapter) else 2,
    )
    labels = _ratio_labels(rows, colour, sign="×" * scaled) if len(rows) > 1 or scaled else []
    return _end(rows, method + " (×)" * scaled, colour), labels


def _draw_behind(
    axes: Axes, rows: pd.DataFrame, styles: Styles, shape: str | None, *, ratios: bool
) -> tuple[tuple, list[tuple]]:
    """Draw a curve to compare with, hollow and dashed, with its ratios or without; return what `_draw_method` does."""
    label = rows["label"].iloc[0]
    colour, marker = styles.get(label, styles[rows["method"].iloc[0]])
    axes.plot(rows["chain_tokens"], 100 * rows["accuracy"], f"{shape or marker}--", color=colour, mfc="white",
              alpha=0.6, zorder=1.5 if ratios else 1)  # fmt: skip
    name = f"{label} {SHAPES[shape]}" if shape else label
    return _end(rows, name, colour), _ratio_labels(rows, colour) if ratios and len(rows) > 1 else []


def _shapes_behind(behind: pd.DataFrame) -> dict[str, str]:
    """The marker of each label, for the methods that have more than one label."""
    shapes: dict[str, str] = {}
    for _, labels in behind.groupby("method", sort=False)["label"]:
        if labels.nunique() > 1:
            shapes |= dict(zip(labels.unique(), cycle(SHAPES)))
    return shapes


def _draw_columns(axes: Axes, methods: list[pd.DataFrame], styles: Styles) -> None:
    """Draw methods side by side, each at its name; a method with several levels has its points next to each other."""
    for place, rows in enumerate(methods):
        colour, marker = styles[rows["method"].iloc[0]]
        levels = place + 0.18 * (np.arange(len(rows)) - (len(rows) - 1) / 2)
        axes.errorbar(levels, 100 * rows["accuracy"], yerr=_errors(rows), color=colour, marker=marker, capsize=2,
                      markersize=5, elinewidth=0.8, linewidth=0)  # fmt: skip
    names = [rows["method"].iloc[0] for rows in methods]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_title("as long as the original", fontsize="medium", fontweight="normal")
    for tick, name in zip(axes.get_xticklabels(), names, strict=True):
        tick.set_color(styles[name][0])


def _end(rows: pd.DataFrame, name: str, colour: Any) -> tuple:
    last = rows.iloc[int(rows["chain_tokens"].argmax())]
    return 100 * last["accuracy"], name, colour, last["chain_tokens"]


def _ratio_labels(rows: pd.DataFrame, colour: Any, sign: str = "") -> list[tuple]:
    """Entries for `label_points`, the ends first: the requested ratio, or the strength with a sign before it."""
    points = list(rows[["chain_tokens", "accuracy", "ratio"]].itertuples(index=False))
    points = [*points[::-1][:1], *points[:-1]]
    return [(tokens, 100 * accuracy, f"{sign}{ratio:g}", colour) for tokens, accuracy, ratio in points]
