"""Figures: written with their origin, text drawn as it is, every point of the table shown."""

import hashlib
import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.figures import results, style


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_a_figure_is_written_with_profile_commit_and_the_digest_of_its_source(tiny_profile, tmp_path):
    run = Run.create(tiny_profile)
    source = run.folder / "metrics.csv"
    source.write_text("a,b\n1,2\n")
    figure = results.loss_figure(pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}))
    path = run.save_figure(figure, "loss", source, n=2, alt="Loss over steps")
    assert path == run.folder / "figures" / "loss.png" and path.read_bytes().startswith(b"\x89PNG")
    origin = json.loads(path.with_suffix(".json").read_text())
    assert origin["source_sha256"] == hashlib.sha256(b"a,b\n1,2\n").hexdigest()
    assert (origin["profile"], origin["seed"], origin["commit"]) == ("smoke", run.profile.seed, run.state["commit"])
    assert origin["source"].endswith("metrics.csv") and origin["n"] == 2
    assert origin["alt"] == "Loss over steps"
    assert origin["overrides"]["target.dtype"] == "float32" and "run_dir" not in origin["overrides"]


def test_every_point_of_the_metrics_is_drawn():
    metrics = pd.DataFrame(
        [("original", 1.0, 0.5, 100.0), ("tokenskip", 0.5, 0.4, 60.0), ("tokenskip", 0.9, 0.45, 90.0)],
        columns=["method", "ratio", "accuracy", "chain_tokens"],
    ).assign(accuracy_low=0.3, accuracy_high=0.6)
    axes = results.accuracy_figure(metrics, "t").axes[0]
    drawn = {float(x): float(y) for c in axes.containers for x, y in zip(*c.lines[0].get_data(), strict=True)}
    assert drawn == pytest.approx({60.0: 40.0, 90.0: 45.0, 100.0: 50.0})


def _metrics(*rows: tuple) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["method", "ratio", "accuracy", "chain_tokens"])
    return table.assign(accuracy_low=table["accuracy"] - 0.01, accuracy_high=table["accuracy"] + 0.01)


def _drawn(axes) -> set[tuple[float, float]]:
    low, high = axes.get_ylim()
    points = [
        (float(x), round(float(y), 6)) for c in axes.containers for x, y in zip(*c.lines[0].get_data(), strict=True)
    ]
    return {(x, y) for x, y in points if low <= y <= high}


def test_a_title_is_drawn_as_it_is_written(tmp_path):
    metrics = _metrics(("original", 1.0, 0.5, 100.0), ("tokenskip", 0.5, 0.4, 60.0))
    figure = results.accuracy_figure(metrics, "$\\frac{$")
    style.write_figure(figure, tmp_path / "drawn.png", {})
    assert (tmp_path / "drawn.png").stat().st_size


def test_methods_as_long_as_the_original_have_a_panel_of_their_own():
    metrics = _metrics(("original", 1.0, 0.5, 100.0), ("tokenskip", 1.0, 0.5, 100.0), ("be_concise", 1.0, 0.5, 100.2),
                       ("abbre_words", 0.5, 0.4, 99.9), ("abbre_words", 1.0, 0.5, 100.0),
                       ("only_numbers", 1.0, 0.5, 80.0))  # fmt: skip
    axes, beside = results.accuracy_figure(metrics, "t").axes
    assert _drawn(axes) == {(100.0, 50.0), (80.0, 50.0)}
    assert [label.get_text() for label in beside.get_xticklabels()] == ["be_concise", "abbre_words"]
    assert {(round(x), y) for x, y in _drawn(beside)} == {(0, 50.0), (1, 40.0), (1, 50.0)} and len(_drawn(beside)) == 3


def test_a_method_far_below_the_others_is_named_in_a_note_and_the_axis_is_whole():
    metrics = _metrics(("original", 1.0, 0.9, 100.0), ("tokenskip", 0.5, 0.8, 50.0), ("truncation", 0.5, 0.02, 50.0),
                       ("truncation", 0.9, 0.05, 90.0))  # fmt: skip
    [axes] = results.accuracy_figure(metrics, "t").axes
    assert _drawn(axes) == {(100.0, 90.0), (50.0, 80.0)} and axes.get_ylim()[0] > 60
    assert "↓ below this axis: truncation, 2.0 to 5.0%" in {text.get_text() for text in axes.texts}
    published = _metrics(("truncation", 0.5, 0.3, 60.0), ("truncation", 0.9, 0.55, 90.0))  # in the middle
    [axes] = results.accuracy_figure(metrics, "t", published).axes
    assert {"truncation", "truncation, published"} < {text.get_text() for text in axes.texts}
    assert axes.get_ylim()[0] < 2 and (50.0, 2.0) in _drawn(axes)


def test_nothing_is_below_if_all_methods_are_alike_or_there_is_one():
    for rows in ([("original", 1.0, 0.5, 100.0)], [("original", 1.0, 0.0, 100.0), ("tokenskip", 0.5, 0.0, 60.0)]):
        [axes] = results.accuracy_figure(_metrics(*rows), "t").axes
        assert len(_drawn(axes)) == len(rows)


def test_no_label_of_a_point_lies_on_another_or_on_a_point():
    rows = [("tokenskip", ratio, 0.8 + 0.001 * ratio, 50 + 8 * ratio) for ratio in (0.5, 0.6, 0.7, 0.8, 0.9)]
    [axes] = results.accuracy_figure(_metrics(("original", 1.0, 0.9, 100.0), *rows), "t").axes
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()[0] == "0"]
    assert boxes and len(boxes) < len(rows)  # the points are too close for all of their labels
    assert not any(box.overlaps(other) for number, box in enumerate(boxes) for other in boxes[:number])
    points = axes.transData.transform([(tokens, 100 * accuracy) for _, _, accuracy, tokens in rows])
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_every_method_has_a_style_of_its_own():
    styles = style.method_styles([*METHODS, "random pruning", "another"])
    assert len(set(styles.values())) == len({colour for colour, _ in styles.values()}) == len(METHODS) + 2
    built_in = {to_rgb(method.colour) for method in METHODS.values()}
    assert built_in > {to_rgb("black"), *(style.PALETTE[number] for number in range(6))}
    assert built_in.isdisjoint(style.FREE_COLOURS)
    assert not set(style.FREE_MARKERS) & {method.marker for method in METHODS.values()}
    assert styles["random pruning"] == (style.PALETTE[7], "v")


def test_strengths_are_labelled_as_strengths():
    rows = [("original", 1.0, 0.9, 100.0), ("tokenskip", 0.5, 0.8, 50.0), ("tokenskip", 0.9, 0.85, 90.0)]
    metrics = _metrics(*rows, ("adapter_scaling", 0.5, 0.86, 80.0), ("adapter_scaling", 1.5, 0.7, 40.0))
    [axes] = results.accuracy_figure(metrics, "t").axes
    labels = {text.get_text() for text in axes.texts}
    assert {"0.5", "0.9", "×0.5", "×1.5", "tokenskip", "adapter_scaling (×)"} < labels
    [axes] = results.accuracy_figure(metrics[:-1], "t").axes  # one strength alone as well
    assert "×0.5" in {text.get_text() for text in axes.texts}


def test_more_methods_than_free_colours_are_drawn_all_the_same():
    styles = style.method_styles([f"own {number}" for number in range(12)])
    assert len(styles) == 12 and len(set(styles.values())) > len(style.FREE_COLOURS)


def test_a_method_that_nobody_registered_is_drawn_too():
    metrics = _metrics(("original", 1.0, 0.5, 100.0), ("mine", 0.5, 0.45, 60.0), ("yours", 0.5, 0.48, 70.0))
    published = _metrics(("theirs", 0.5, 0.47, 80.0))
    [axes] = results.accuracy_figure(metrics, "t", published).axes
    assert _drawn(axes) == {(100.0, 50.0), (60.0, 45.0), (70.0, 48.0)}
    colours = {text.get_text(): to_rgb(text.get_color()) for text in axes.texts}
    assert len(set(colours.values())) == len(colours) == 4 and "theirs, published" in colours


def test_published_curves_have_their_labels_and_a_methods_first_one_shows_its_ratios():
    metrics = _metrics(("mine", 1.0, 0.5, 100.0))  # no original of one's own
    published = pd.concat(
        [
            _metrics(("tokenskip", 0.5, 0.4, 50.0), ("tokenskip", 0.9, 0.5, 90.0)).assign(label="the paper"),
            _metrics(("tokenskip", 0.6, 0.4, 55.0), ("tokenskip", 0.8, 0.5, 80.0)).assign(label="again"),
        ]
    )
    [axes] = results.accuracy_figure(metrics, "t", published, {"again": ("red", "v")}).axes
    texts = {text.get_text(): to_rgb(text.get_color()) for text in axes.texts}
    assert set(texts) == {"mine", "the paper", "again", "0.5", "0.9"}
    chosen = {"the paper": ("green", "s"), "again": ("red", "o")}  # shapes that the caller chose have no sign
    [axes] = results.accuracy_figure(metrics, "t", published, chosen).axes
    assert {text.get_text() for text in axes.texts} == set(texts)
    assert texts["again"] == to_rgb("red") and texts["the paper"] == texts["0.5"] == to_rgb(METHODS["tokenskip"].colour)


def test_published_curves_and_other_seeds_are_drawn_behind_together():
    metrics = _metrics(("original", 1.0, 0.5, 100.0), ("tokenskip", 0.5, 0.4, 50.0), ("tokenskip", 0.9, 0.5, 90.0))
    published = _metrics(("tokenskip", 0.5, 0.35, 55.0), ("tokenskip", 0.9, 0.45, 92.0))
    seed = published.assign(label="tokenskip, seed 1", accuracy=[0.38, 0.46])
    [axes] = results.accuracy_figure(metrics, "t", pd.concat([published, seed])).axes
    names = {"original", "tokenskip", "tokenskip, published ○", "tokenskip, seed 1 □"}
    assert {text.get_text() for text in axes.texts} == names | {"0.5", "0.9"}
    assert [line.get_marker() for line in axes.lines if line.get_linestyle() == "--"] == ["o", "s"]


def test_a_ratio_figure_prints_the_ratio_of_all_tokens_at_each_request():
    table = pd.DataFrame({"ratio": [0.5, 0.5, 0.9], "tokens": [4, 18, 91], "original_tokens": [10, 30, 100]})
    axes = results.ratio_figure(table, "t").axes[0]
    assert [text.get_text() for text in axes.texts] == ["as requested", "0.55", "0.91", "all together"]


def test_lengths_are_drawn_for_kept_and_dropped_chains():
    chains = pd.DataFrame({"chain_tokens": [10, 20, 30, 40], "dropped": [None, None, "wrong", "cut_off"]})
    axes = results.chain_length_figure(chains).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept", "cut_off", "wrong"]
    assert any("mean of kept 15" in text.get_text() for text in axes.texts)


def test_chains_that_were_all_kept_can_be_drawn():
    axes = results.chain_length_figure(pd.DataFrame({"chain_tokens": [10, 20], "dropped": [None, None]})).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept"]


def test_a_longer_training_is_drawn_behind_and_sets_the_axis():
    log = pd.DataFrame({"step": [1, 5, 10], "loss": [2.0, 1.5, 1.2], "eval_loss": [None, 1.6, 1.4]})
    longer = pd.DataFrame({"step": [100, 400], "loss": [1.0, 0.4], "eval_loss": [0.9, 0.5]})
    axes = results.loss_figure(log, longer).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 5, 10], [5, 10], [100, 400]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training, at the end 1.200", "held out, at the end 1.400", "held out, longer training, at the end 0.500",
    ]  # fmt: skip
    assert axes.get_xlim()[1] > 400
