"""One function per figure: records or a DataFrame in, a matplotlib Figure out; save_figure writes it.

Text of models and problems is drawn as it is (no mathtext), so `$18` stays `$18`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import rankdata

from tokenskip_lib.config import resolve_path
from tokenskip_lib.records import ScoredChain
from tokenskip_lib.runs import Run, relative

PALETTE = sns.color_palette("colorblind")
METHOD_STYLE = {  # colour, marker
    "original": ("black", "*"),
    "tokenskip": (PALETTE[0], "o"),
    "truncation": (PALETTE[3], "s"),
    "lc_prompt": (PALETTE[2], "^"),
    "be_concise": (PALETTE[1], "D"),
    "only_numbers": (PALETTE[4], "P"),
    "abbre_words": (PALETTE[5], "X"),
}
STRIP_COLUMNS = 92  # characters a line
_MONOSPACE_WIDTH = 0.602  # of the font size: DejaVu Sans Mono
_STYLE = {
    **sns.axes_style("whitegrid"),
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "figure.constrained_layout.use": True,
}


def save_figure(figure: Figure, name: str, run: Run, source: Path) -> Path:
    """Write figures/<profile>_<name>.png, and beside it a .json that says where it comes from.

    Args:
        source: the file of records or metrics that was drawn; its sha256 is noted.
    """
    folder = resolve_path(run.profile.figures_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.profile.name}_{name}.png"
    figure.savefig(path, dpi=160)
    plt.close(figure)  # a notebook would show an open figure a second time
    origin = {
        "profile": run.profile.name,
        "seed": run.profile.seed,
        "commit": run.state["commit"],
        "source": relative(source),
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    return path


def chain_length_figure(chains: pd.DataFrame) -> Figure:
    """How long chains are, kept and dropped apart.

    Args:
        chains: columns chain_tokens and dropped (None where kept).
    """
    table = chains.assign(outcome=chains["dropped"].fillna("kept"))
    order = ["kept", *sorted(set(table["outcome"]) - {"kept"})]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        sns.histplot(
            table,
            x="chain_tokens",
            hue="outcome",
            hue_order=order,
            multiple="stack",
            binwidth=10,
            palette=PALETTE[: len(order)],
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
    font = 0.85 * width * 72 / max(columns, 60) / _MONOSPACE_WIDTH
    height = sum(lines) * 1.6 * font / 72 + 0.4 * len(chains) + 0.6
    colours = sns.color_palette("YlOrBr", as_cmap=True)
    with plt.rc_context(_STYLE):
        figure, panels = plt.subplots(
            len(chains), 1, figsize=(width, height), height_ratios=lines, squeeze=False, layout="constrained"
        )
        for axes, chain, layout, count in zip(panels[:, 0], chains, layouts, lines, strict=True):
            ranks = (rankdata(chain.importance) - 0.5) / len(chain.importance)
            for (row, column, piece), span in layout.items():
                axes.add_patch(Rectangle((column, row), len(piece), 1, color=colours(0.8 * ranks[span]), linewidth=0))
                axes.text(
                    column,
                    row + 0.5,
                    piece,
                    fontsize=font,
                    family="DejaVu Sans Mono",
                    va="center",
                    color="white" if ranks[span] > 0.85 else "black",
                    parse_math=False,
                )
            axes.set(xlim=(0, max(columns, 60)), ylim=(count, 0))
            axes.set_title(chain.scorer)
            axes.axis("off")
        scale = plt.cm.ScalarMappable(cmap=colours, norm=plt.Normalize(0, 1 / 0.8))
        bar = figure.colorbar(
            scale, ax=panels[:, 0].tolist(), location="bottom", aspect=50, pad=0.02, boundaries=np.linspace(0, 1, 101)
        )
        bar.set_ticks([0, 0.5, 1], labels=["least important", "importance rank in the chain", "most important"])
    return figure


def kind_figure(table: pd.DataFrame) -> Figure:
    """Which kinds of span score high, one panel's bar a scorer.

    Args:
        table: columns scorer, kind, rank (importance rank within the chain, 0 to 1), one row a span.
    """
    first = table["scorer"].iloc[0]
    order = table[table["scorer"] == first].groupby("kind")["rank"].mean().sort_values(ascending=False).index
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.4))
        sns.barplot(
            table,
            y="kind",
            x="rank",
            hue="scorer",
            order=order,
            errorbar=("ci", 95),
            seed=0,
            palette=PALETTE[: table["scorer"].nunique()],
            err_kws={"linewidth": 1},
            ax=axes,
        )
        axes.axvline(0.5, color="0.25", linestyle="--", linewidth=1)
        axes.set(xlabel="mean importance rank in the chain (0.5 = no preference)", ylabel=None, xlim=(0, 1))
        axes.set_title("Which kinds of token score high")
        sns.move_legend(axes, "lower right", title=None, frameon=True)
    return figure


def ratio_figure(table: pd.DataFrame, title: str) -> Figure:
    """Requested against actual ratio, one point a chain, the mean printed at each request.

    Args:
        table: columns ratio and actual_ratio.
    """
    means = table.groupby("ratio")["actual_ratio"].mean()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 4.2))
        jitter = np.random.default_rng(0).uniform(-0.012, 0.012, len(table))
        axes.plot([0.4, 1.05], [0.4, 1.05], color="0.4", linestyle="--", linewidth=1, label="as requested")
        axes.scatter(table["ratio"] + jitter, table["actual_ratio"], s=8, alpha=0.35, color=PALETTE[0], linewidth=0)
        axes.plot(means.index, means, marker="o", color="black", linewidth=0, label="mean")
        for ratio, mean in means.items():
            axes.annotate(f"{mean:.2f}", (ratio, mean), xytext=(8, -12), textcoords="offset points")
        axes.set(xlabel="requested ratio", ylabel="actual ratio (target tokens)", title=title)
        axes.legend(frameon=False, loc="upper left")
    return figure


def loss_figure(log: pd.DataFrame) -> Figure:
    """Training and held-out loss over optimiser steps.

    Args:
        log: columns step, loss, eval_loss (NaN where not measured), nats per response token.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
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
        axes.set_xlim(0, log["step"].max() * 1.22)
    return figure


def accuracy_figure(metrics: pd.DataFrame, title: str) -> Figure:
    """Accuracy against chain tokens, every method on one axis, 95% intervals drawn.

    Args:
        metrics: the columns of metrics.csv.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 5))
        for method, rows in metrics.groupby("method", sort=False):
            rows = rows.sort_values("chain_tokens")
            colour, marker = METHOD_STYLE[method]
            accuracy = 100 * rows["accuracy"]
            errors = [accuracy - 100 * rows["accuracy_low"], 100 * rows["accuracy_high"] - accuracy]
            axes.errorbar(
                rows["chain_tokens"],
                accuracy,
                yerr=errors,
                color=colour,
                marker=marker,
                label=method,
                capsize=2,
                markersize=11 if method == "original" else 6,
                elinewidth=0.8,
                linewidth=1.4,
                zorder=3 if method in ("original", "tokenskip") else 2,
            )
            if len(rows) > 1:
                for number, row in enumerate(rows.itertuples()):
                    axes.annotate(
                        f"{row.ratio:g}",
                        (row.chain_tokens, 100 * row.accuracy),
                        color=colour,
                        fontsize=8,
                        xytext=[(5, 5), (5, -12), (-17, 5), (-17, -12)][number % 4],
                        textcoords="offset points",
                    )
        axes.set(xlabel="chain tokens (mean over problems)", ylabel="accuracy (%)", title=title)
        axes.set_ylim(0, min(100, 100 * metrics["accuracy_high"].max() + 8))
        axes.legend(frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
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
