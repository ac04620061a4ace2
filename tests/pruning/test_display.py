"""A chain as HTML: every character is shown, nothing is read as markup or mathematics, and colours are ranks."""

import html
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import to_hex
from scipy.stats import rankdata

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.core.results import Records
from tokenskip_lib.pruning.display import DARKEST, chain_html, importance_ranks, rank_colours
from tokenskip_lib.pruning.results import ScoredChains
from tokenskip_lib.pruning.spans import segment


def shown(page: str) -> str:
    """What a reader sees of HTML, tags aside."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("importance", [True, False])
def test_markup_and_dollars_of_a_chain_stay_text(importance):
    text = "<script>alert('x')</script> & \"$18\" \\(y\\)"
    spans = segment(text)
    page = chain_html(text, spans, [float(end) for _, end in spans] if importance else None, [0, 1])
    assert "<script" not in page and "&lt;" in page and "&amp;" in page
    assert shown(page) == text
    assert 'class="tokenskip-chain mathjax_ignore tex2jax_ignore"' in page and "pre-wrap" in page


def test_in_a_browser_nothing_of_a_models_text_runs(page):
    hostile = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><svg onload='window.ran = 1'>"
    spans = [(0, 40), (40, len(hostile))]
    scored = ScoredChain(id=hostile, scorer=hostile, text=hostile, spans=spans, importance=[1.0, 2.0])
    table = pd.DataFrame({"prompt": [hostile]})
    made = [
        chain_html(hostile, spans, [1.0, 2.0], [0]),
        ScoredChains([scored])._repr_html_(),
        Records([scored])._repr_html_(),
        table._repr_html_(),
        table.style.hide().format(escape="html").to_html(),  # as in the notebooks
    ]

    def runs(content: str) -> bool:
        page.goto("about:blank")  # a new window: what ran before has left no trace
        page.set_content(f"<p>x</p>{content}")
        page.wait_for_timeout(200)
        return page.evaluate("window.ran === 1")

    assert runs(hostile)
    assert [runs(content) for content in made] == [False] * len(made)


@given(text=st.text(max_size=60) | st.text("<>&\"'$\\(){} \n\tab1", max_size=60), data=st.data())
def test_every_character_is_shown_in_order(text, data):
    spans = segment(text)
    n = len(spans)
    importance = data.draw(st.none() | st.lists(st.floats(allow_nan=False), min_size=n, max_size=n))
    kept = data.draw(st.none() | st.sets(st.sampled_from(range(n)))) if n else set()
    page = chain_html(text, spans, importance, None if kept is None else sorted(kept))
    number = n if kept is None else len(kept)
    assert shown(page) == text
    assert (page.count("<mark "), page.count("<s ")) == (0 if importance is None else number, n - number)


def test_kept_spans_are_coloured_by_rank_and_skipped_ones_struck_through():
    text = "one two three four"
    page = chain_html(text, segment(text), [0.2, 30.0, 0.1, 4.0], [0, 1, 3])
    colours = dict(re.findall(r"<mark [^>]*background: (#\w{6})[^>]*>(\w+)</mark>", page))
    lightness = {word: sum(bytes.fromhex(colour[1:])) for colour, word in colours.items()}
    assert lightness["two"] < lightness["four"] < lightness["one"]
    assert re.search(r"<s [^>]*line-through[^>]*>three</s>", page)
    assert 'title="importance rank 1 of 4" style="background: ' in page


def test_colours_are_those_of_the_figures():
    colours = colormaps["YlOrBr"]
    for rank in np.linspace(0, 1, 2001):
        assert rank_colours(rank)[0] == to_hex(colours(DARKEST * rank))
    assert (rank_colours(0.8)[1], rank_colours(0.9)[1]) == ("black", "white")


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.1, 2.0, 1e9, float("inf")]), max_size=30))
def test_equal_scores_share_the_mean_of_their_ranks(scores):
    expected = (rankdata(scores) - 0.5) / max(len(scores), 1) if scores else []
    assert importance_ranks(scores).tolist() == list(expected)
