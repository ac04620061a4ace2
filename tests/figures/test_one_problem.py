"""The diagram, the figure and the slider of notebook 00."""

import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tokenskip_lib.figures.one_problem import BOXES, answers_figure, answers_slider, gradient_figure, method_figure


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def answers() -> pd.DataFrame:
    return pd.DataFrame(
        {"ratio": [1.0, 0.7, 0.5], "untrained_tokens": [31] * 3, "tokens": [31, 21, 17], "chain": ["a", "<b>$1", "c"]}
    )


def test_the_committed_diagram_is_the_one_that_the_code_draws(root):
    drawn = [text.get_text() for text in method_figure().axes[0].texts]
    lines = sorted(line for text in drawn for line in text.split("\n") if line.strip())
    svg = ElementTree.parse(root / "docs" / "method.svg")
    committed = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(line for line in committed if line and line.strip()) == lines
    assert len([line for line in lines if re.match(r"\d  ", line)]) == len(BOXES) == 7


def test_no_text_of_the_diagram_leaves_its_box_or_lies_on_another():
    figure = method_figure()
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [patch.get_window_extent() for patch in axes.patches]
    extents = [text.get_window_extent() for text in axes.texts if text.get_text().strip()]
    for extent in extents:
        assert (
            sum(
                box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
                for box in boxes
            )
            == 1
        )
    for index, extent in enumerate(extents):
        assert not any(extent.overlaps(other) for other in extents[index + 1 :])


def test_every_predicted_token_has_a_bar_and_the_prompt_is_shaded():
    shade, *bars = sorted(gradient_figure([0, 0, 3, 1], 3).axes[0].patches, key=lambda patch: -patch.get_width())
    assert [bar.get_height() for bar in bars] == [0, 0, 3, 1]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([1, 2, 3, 4])
    assert (shade.get_x(), shade.get_width()) == (0, 2.5)


def test_every_ratio_is_drawn_for_both_models(answers):
    exact, untrained, trained = answers_figure(answers).axes[0].lines
    assert list(trained.get_ydata()) == [17, 21, 31] and list(untrained.get_ydata()) == [31, 31, 31]
    assert list(exact.get_ydata()) == pytest.approx([15.5, 21.7, 31])
    assert trained.get_color() != untrained.get_color()


def test_the_slider_has_every_answer_and_shows_the_last(answers):
    page = answers_slider(answers)
    assert "&lt;b&gt;$1" in page and "<b>$1" not in page and "tex2jax_ignore" in page
    sections = re.findall(r'<section data-place="(\d)"(.*?)>', page)
    assert [place for place, _ in sections] == ["0", "1", "2"]
    assert ["none" in style for _, style in sections] == [True, True, False]
    assert 'max="2" value="2"' in page and "asked for 0.5: 17 tokens" in page
