"""One function per figure: records or a DataFrame in, a matplotlib Figure out; `Run.save_figure` writes it.

Text of models and problems is drawn as it is, without mathtext: `$18` stays `$18`.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.figures.style import OUTCOME_COLOURS, PALETTE, STYLE, colours_of, method_styles, name_curves

Styles = dict[str, tuple[Any, str]]  # what `method_styles` returns


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
        axes.scatter(table["ratio"] + jitter, own, s=8, alpha=0.35, color=PALETTE[0], linewidth=0)
        axes.plot(together.index, together, marker="o", color="black", linewidth=0)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        for ratio, actual in together.items():
            axes.annotate(f"{actual:.2f}", (ratio, actual), xytext=(8, -12), textcoords="offset points", bbox=box)
        last = (together.index[-1], together.iloc[-1])
        axes.annotate("all together", last, xytext=(-10, 4), textcoords="offset points", ha="right", bbox=box)
        axes.set(xlabel="requested ratio", ylabel="actual ratio (target tokens)", title=title)
    return figure


def loss_figure(log: pd.DataFrame, longer: pd.DataFrame | None = None) -> Figure:
    """Training and held-out loss over optimiser steps.

    Args:
        log: columns step, loss and eval_loss (NaN if not measured), in nats per response token.
        longer: the log of a longer training by the same recipe; its held-out loss is drawn behind, and the
            steps are then on a logarithmic axis.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        if longer is not None:
            points = longer.dropna(subset=["eval_loss"])
            axes.plot(points["step"], points["eval_loss"], "o-", color="0.6", markersize=4, linewidth=1.2)
            end = points.iloc[-1]
            label = f"longer training,\nheld out {end['eval_loss']:.3f}"
            axes.annotate(label, (end["step"], end["eval_loss"]), color="0.4", ha="right", va="top",
                          xytext=(0, -8), textcoords="offset points")  # fmt: skip
        curves = {"loss": ("training", "-", PALETTE[0]), "eval_loss": ("held out", "o-", PALETTE[1])}
        curves = {column: curve for column, curve in curves.items() if column in log}
        ends = {column: log[column].dropna().iloc[-1] for column in curves}
        for column, (label, style, colour) in curves.items():
            points = log.dropna(subset=[column])
            axes.plot(points["step"], points[column], style, color=colour, markersize=4, linewidth=1.4)
            axes.annotate(
                f" {label} {ends[column]:.3f}",
                (log["step"].max(), ends[column]),
                color=colour,
                va="bottom" if ends[column] == max(ends.values()) else "top",
                xytext=(4, 0),
                textcoords="offset points",
            )
        axes.set(xlabel="optimiser step", ylabel="loss (nats a response token)", title="Fine-tuning", ylim=(0, None))
        if longer is None:
            axes.set_xlim(0, log["step"].max() * 1.22)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def accuracy_figure(
    metrics: pd.DataFrame, title: str, published: pd.DataFrame | None = None, styles: Styles | None = None
) -> Figure:
    """Accuracy against chain tokens: one curve a method with its name, and 95% intervals.

    Two things keep points from hiding each other. Methods as long as the original are drawn side by side to
    its right. The accuracy axis is broken if a third of it is empty.

    Args:
        metrics: the columns of metrics.csv. A method that evaluation does not know gets a free colour and marker.
        published: published rows for the same experiment, drawn behind: columns method, ratio,
            chain_tokens and accuracy (a fraction), and label if several publications are among them.
        styles: colour and marker of curves by method or label, in place of those of `method_styles`.
    """
    drawn = metrics[["accuracy_low", "accuracy_high"]]
    if published is not None:
        published = published.assign(label=published.get("label", published["method"] + ", published"))
        drawn = pd.concat([drawn, published["accuracy"].rename("accuracy_low").to_frame()])
    named = [*metrics["method"], *([] if published is None else published["method"])]
    styles = method_styles(named) | (styles or {})
    levels = _levels(drawn.assign(accuracy_high=drawn["accuracy_high"].fillna(drawn["accuracy_low"])))
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(
            len(levels), sharex=True, squeeze=False, figsize=(8, 5), height_ratios=[4, 1][: len(levels)]
        )
        places = _side_by_side(metrics)
        for axes, (low, high) in zip(panels[:, 0], levels, strict=True):
            axes.set_ylim(low, high)
            drawn_rows = [rows.assign(place=places[rows.index]) for rows in _by_method(metrics)]
            names = [_draw_method(axes, rows, styles) for rows in drawn_rows]
            labelled = set(metrics["method"])  # a second curve of a method near the first would hide its ratios
            for rows in [] if published is None else _by_method(published, "label"):
                names.append(_draw_published(axes, rows, styles, ratios=rows["method"].iloc[0] not in labelled))
                labelled |= set(rows["method"])
            name_curves(axes, [name for name in names if low <= name[0] <= high])
        panels[0, 0].set_title(title, parse_math=False)
        panels[-1, 0].set_xlabel("chain tokens (mean over problems; where equal, side by side)")
        figure.supylabel("accuracy (%)", fontsize="medium")
        if len(levels) > 1:
            _break_axis(*panels[:, 0])
    return figure


def _levels(drawn: pd.DataFrame) -> list[tuple[float, float]]:
    """The ranges of accuracy to draw, in percent, the upper first: two if a third of the axis is empty, else one."""
    rows = drawn.sort_values("accuracy_low")
    lows, highs = 100 * rows["accuracy_low"].to_numpy(), 100 * rows["accuracy_high"].cummax().to_numpy()
    gaps = lows[1:] - highs[:-1]
    top = min(103, highs[-1] + 4)
    if not len(gaps) or gaps.max() < 33:
        return [(-5, top)]
    split = int(gaps.argmax())
    return [(lows[split + 1] - 6, top), (lows[0] - 3, highs[split] + 4)]


def _side_by_side(metrics: pd.DataFrame) -> pd.Series:
    """Where to draw each row: at its tokens, or beside the original if all of a method's rows are as long as it."""
    places = metrics["chain_tokens"].astype(float)
    if "original" not in set(metrics["method"]):
        return places
    in_place = ["original", *(name for name, method in METHODS.items() if method.uses_adapter)]
    whole, step = places[metrics["method"] == "original"].iloc[0], 0.015 * places.max()
    same = [
        rows.index
        for rows in _by_method(metrics[~metrics["method"].isin(in_place)])
        if ((rows["chain_tokens"] - whole).abs() < step).all()
    ]
    for number, index in enumerate(same, start=1):
        places[index] = whole + number * step
    return places


def _by_method(table: pd.DataFrame, column: str = "method") -> list[pd.DataFrame]:
    return [rows.sort_values("ratio") for _, rows in table.groupby(column, sort=False)]


def _draw_method(axes: Axes, rows: pd.DataFrame, styles: Styles) -> tuple:
    """Draw one method's curve at the column `place`; return its entry for `name_curves`."""
    method = rows["method"].iloc[0]
    known = METHODS.get(method)
    scaled = known is not None and known.scales_adapter
    colour, marker = styles[method]
    accuracy = 100 * rows["accuracy"]
    axes.errorbar(
        rows["place"],
        accuracy,
        yerr=[accuracy - 100 * rows["accuracy_low"], 100 * rows["accuracy_high"] - accuracy],
        color=colour,
        marker=marker,
        capsize=2,
        markersize=11 if method == "original" else 6,
        elinewidth=0.8,
        linewidth=1.4,
        zorder=3 if method == "original" or (known is not None and known.uses_adapter) else 2,
    )
    if len(rows) > 1 or scaled:
        _label_ratios(axes, rows, colour, sign="×" * scaled)
    last = int(rows["place"].argmax())
    return accuracy.iloc[last], method + " (× strength)" * scaled, colour, rows["place"].iloc[last]


def _draw_published(axes: Axes, rows: pd.DataFrame, styles: Styles, *, ratios: bool) -> tuple:
    """Draw one published curve, hollow and dashed, with its ratios or without; return its entry for `name_curves`."""
    label = rows["label"].iloc[0]
    colour, marker = styles.get(label, styles[rows["method"].iloc[0]])
    accuracy = 100 * rows["accuracy"]
    order = 1.5 if ratios else 1
    axes.plot(rows["chain_tokens"], accuracy, f"{marker}--", color=colour, mfc="white", alpha=0.6, zorder=order)
    if ratios and len(rows) > 1:
        _label_ratios(axes, rows.assign(place=rows["chain_tokens"]), colour)
    last = int(rows["chain_tokens"].argmax())
    return accuracy.iloc[last], label, colour, rows["chain_tokens"].iloc[last]


def _break_axis(upper: Axes, lower: Axes) -> None:
    """Draw two panels as one axis with a gap."""
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(axis="x", bottom=False)
    cut: dict[str, Any] = {
        "marker": [(-1, -0.5), (1, 0.5)],
        "markersize": 8,
        "linestyle": "none",
        "color": "0.3",
        "clip_on": False,
    }
    upper.plot([0], [0], transform=upper.transAxes, **cut)
    lower.plot([0], [1], transform=lower.transAxes, **cut)
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def _label_ratios(axes: Axes, rows: pd.DataFrame, colour: Any, sign: str = "") -> None:
    """Write the requested ratio at each point, or the strength with a sign before it.

    If points are too close to tell apart, only the first and the last get a label; if these are too, none.
    """
    lengths = np.sort(rows["place"].to_numpy())
    nearest, span, width = np.diff(lengths).min(initial=np.inf), lengths[-1] - lengths[0], 0.02 * lengths[-1]
    points = rows[["ratio", "place", "accuracy"]].to_numpy()
    for ratio, place, accuracy in points[slice(None) if nearest > width else [] if span < width else [0, -1]]:
        axes.annotate(
            f"{sign}{ratio:g}",
            (place, 100 * accuracy),
            color=colour,
            fontsize=8,
            annotation_clip=True,
            xytext=(4, -11),
            textcoords="offset points",
        )
