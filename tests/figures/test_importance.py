"""Figures and tables of importance: nothing is left out, nothing in a model's text is read as markup or mathematics."""

import re
from html import unescape
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.backends.backend_agg import RendererAgg
from scipy.stats import spearmanr

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.evaluation.importance_tables import (
    disagreement_table,
    kept_table,
    kind_ranks,
    rank_correlations,
    span_table,
)
from tokenskip_lib.figures import importance as importance_figures
from tokenskip_lib.figures.style import write_figure
from tokenskip_lib.pruning.display import importance_ranks
from tokenskip_lib.pruning.spans import segment

TEXT = "Tom pays $18 for <b>2</b> pens & 3_4 x^2.\n\nThen $9 is left: \\frac{1}{2} of it, " + "and so on " * 20


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _scored(scorer: str, values: np.ndarray | None = None, *, chain_id: str = "a", text: str = TEXT) -> ScoredChain:
    spans = segment(text)
    values = np.arange(len(spans)) if values is None else values
    return ScoredChain(id=chain_id, scorer=scorer, text=text, spans=spans, importance=[float(v) for v in values])


@pytest.fixture
def scored() -> list[ScoredChain]:
    """Two chains by three scorers: in order, in reverse, at random."""
    rng, chains = np.random.default_rng(0), []
    for chain_id, text in (("a", TEXT), ("b", "He has 3 + 4 = 7 apples. So 7 - 2 = 5 are left.")):
        count = len(segment(text))
        for scorer, values in (("up", np.arange(count)), ("down", -np.arange(count)), ("chance", rng.random(count))):
            chains.append(_scored(scorer, values, chain_id=chain_id, text=text))
    return chains


def _words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_a_strip_shows_every_character_of_a_chain_once_and_no_mathematics(monkeypatch):
    drawn = []

    def draw_text(self, gc, x, y, text, font, angle, ismath=False, mtext=None):
        drawn.append((text, font.get_family(), ismath))

    figure = importance_figures.importance_strip([_scored("one"), _scored("two")])
    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    figure.canvas.draw()
    pieces = [(text, ismath) for text, family, ismath in drawn if family == ["DejaVu Sans Mono"]]
    assert "".join(text for text, _ in pieces) == 2 * "".join(TEXT.split())
    assert not any(ismath for _, ismath in pieces)


def test_a_strip_has_as_many_artists_for_many_spans_as_for_few():
    """matplotlib needs a minute for 10,000 words if each has artists of its own."""
    few, many = (importance_figures.importance_strip([_scored("one", text="and so " * n)]).axes[0] for n in (2, 500))
    assert len(few.get_children()) == len(many.get_children())


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no picture of a control character
@pytest.mark.parametrize("bad", ["\x00", "\x1b[31m", "\x0b", "\ufffe", "]]>", "<b>&"])
def test_a_figure_of_any_text_is_well_formed(tmp_path, bad):
    text = f"so {bad} is 7"
    spans = [(0, 2), (3, 3 + len(bad)), (4 + len(bad), len(text))]
    chain = ScoredChain(id="a", scorer="s", text=text, spans=spans, importance=[1, 2, 3])
    write_figure(importance_figures.importance_strip([chain]), tmp_path / "strip.png", {})
    shown = "".join(ElementTree.parse(tmp_path / "strip.svg").getroot().itertext())
    assert re.sub("[\x00\x1b\x0b\ufffe]", "\ufffd", bad) in shown


def test_span_tables_have_a_row_for_each_span_of_each_scorer(scored):
    table = span_table(scored)
    assert len(table) == sum(len(chain.spans) for chain in scored)
    assert table.columns.tolist() == ["scorer", "id", "position", "span", "kind", "importance", "rank"]
    first = table[(table["id"] == "b") & (table["scorer"] == "up")]
    assert first["span"].tolist()[:5] == ["He", "has", "3", "+", "4"] and first["kind"].tolist()[2:4] == [
        "number",
        "operator",
    ]
    assert first["rank"].is_monotonic_increasing and 0 < first["rank"].min() < first["rank"].max() < 1


def test_a_span_table_knows_an_x_between_numbers_from_a_variable():
    table = span_table([_scored("up", text="3 x 4 = 12, so x is 12")])
    assert table[table["span"] == "x"]["kind"].tolist() == ["operator", "word"]


def test_rank_correlations_are_spearmans_averaged_over_chains(scored):
    table = rank_correlations(span_table(scored))
    assert table.loc["up", "down"] == pytest.approx(-1) and table.loc["up", "up"] == pytest.approx(1)
    of = {(c.scorer, c.id): c.importance for c in scored}
    by_hand = np.mean([spearmanr(of["up", i], of["chance", i]).statistic for i in "ab"])
    assert table.loc["up", "chance"] == table.loc["chance", "up"] == pytest.approx(by_hand)


def test_kept_tables_mark_what_pruning_keeps(scored):
    table = kept_table(scored, [0.4, 0.8], count_tokens=_words)
    for chain in scored:
        rows = table[(table["id"] == chain.id) & (table["scorer"] == chain.scorer)]
        few, many = (rows[rows["ratio"] == ratio]["kept"].to_numpy() for ratio in (0.4, 0.8))
        assert 0 < few.sum() < many.sum() < len(chain.spans) and not (few & ~many).any()
        ranks = importance_ranks(chain.importance)
        assert ranks[many].min() > ranks[~many].max()


def test_the_shares_of_kinds_are_drawn_for_every_scorer_and_ratio(scored):
    table = kept_table(scored, [0.4, 0.8], count_tokens=_words)
    figure = importance_figures.kept_kinds_figure(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["up", "down", "chance"]
    share = table.query("scorer == 'down' and kind == 'number'").groupby("ratio")["kept"].mean()
    [line] = [line for line in figure.axes[1].lines if line.get_label() == "number"]
    assert line.get_ydata().tolist() == pytest.approx(share.tolist())


@pytest.mark.parametrize(("scale", "zero"), [(1.0, False), (1e-9, False), (1.0, True)])
def test_kept_and_skipped_scores_are_both_drawn(scored, scale, zero):
    table = kept_table(scored, [0.4, 0.8], count_tokens=_words)
    table["importance"] = scale * 10.0 ** table["rank"].mul(6)
    if zero:
        table.loc[table["rank"] == 0, "importance"] = 0.0
    figure = importance_figures.kept_skipped_figure(table, 0.4)
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept", "skipped"]


def test_correlations_are_printed_in_their_cells():
    table = pd.DataFrame([[1, -0.25], [-0.25, 1]], index=["one", "two"], columns=["one", "two"])
    axes = importance_figures.correlation_figure(table).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "-0.25", "-0.25", "1.00"]


def test_the_span_that_scorers_rank_furthest_apart_stands_on_top(scored):
    table = pd.DataFrame(
        [("s", "and", 0.5), ("t", "and", 0.6), ("s", "$x$", 0.1), ("t", "$x$", 0.9)] * 10,
        columns=["scorer", "span", "rank"],
    )
    axes = importance_figures.disagreement_figure(disagreement_table(table)).axes[0]
    assert [re.sub(r"\s+", " ", unescape(label.get_text())) for label in axes.get_yticklabels()] == [
        "and (10x)",
        "$x$ (10x)",
    ]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())


def test_kinds_are_drawn_most_important_first_with_their_intervals():
    spans = [("a", "s", "word", 0.2), ("a", "s", "number", 0.9), ("b", "s", "word", 0.4), ("b", "t", "number", 0.5)]
    table = pd.DataFrame(spans, columns=["id", "scorer", "kind", "rank"])
    axes = importance_figures.kind_figure(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["word", "number"]  # upwards
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["s", "t"]
    ends = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert ends == [pytest.approx([0.2, 0.4]), pytest.approx([0.9, 0.9])]


def test_the_intervals_of_kinds_are_over_chains():
    """The intervals stay the same if every span is repeated fifty times."""
    spans = pd.DataFrame({"id": ["a", "b", "c"], "scorer": "s", "kind": "word", "rank": [0.2, 0.5, 0.8]})
    pd.testing.assert_frame_equal(kind_ranks(spans, seed=0), kind_ranks(pd.concat([spans] * 50), seed=0))


def test_ranks_of_kinds_and_their_intervals_agree_with_seaborns():
    random = np.random.default_rng(0)
    chains = random.integers(0, 40, 600)
    table = pd.DataFrame(
        {
            "id": chains.astype(str),
            "scorer": random.choice(["s", "t"], 600),
            "kind": random.choice(["word", "number"], 600),
            "rank": (chains / 40 + random.random(600)) / 2,
        }
    )
    axes = sns.barplot(table, y="kind", x="rank", hue="scorer", units="id", n_boot=2000, seed=1, errorbar=("ci", 95))
    ours = kind_ranks(table, seed=0).set_index(["kind", "scorer"])
    kinds = [label.get_text() for label in axes.get_yticklabels()]
    for bars, scorer in zip(axes.containers, axes.get_legend().get_texts(), strict=True):
        for bar, kind in zip(bars, kinds, strict=True):
            assert ours.loc[(kind, scorer.get_text()), "rank"] == pytest.approx(bar.get_width())
    theirs = sorted(tuple(line.get_xdata()) for line in axes.lines)
    assert np.array(sorted(zip(ours["low"], ours["high"], strict=True))) == pytest.approx(np.array(theirs), abs=0.01)
