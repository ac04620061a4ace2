"""The explorer: its widgets prune again, its HTML shows what `prune` returns, and a browser agrees."""

import html
import re

import nbformat
import pytest
import yaml

from tests.lab import WAIT_S, open_lab
from tokenskip_lib.analyses.explorer import explore
from tokenskip_lib.core.records import Chain, InputError, ScoredChain
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, SCORED
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.controls import FunctionScorer, RandomScorer, keep_first
from tokenskip_lib.pruning.prune import prune

TEXT = 'Each pen costs $18 & "two" cost $36, if a < b.\nA <b>bold</b> claim:  it\'s 18 + 18 = 36, so $36 it is.'


def shown(page: str) -> str:
    """What a reader sees of HTML, tags aside."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def block(page: str, name: str) -> str:
    """What a reader sees of one of the explorer's blocks."""
    [content] = re.findall(rf'<div class="tokenskip-{name} [^>]*>(.*?)</div>', page, re.DOTALL)
    return shown(content)


@pytest.fixture
def run(tiny_profile, problems, chain_of) -> Run:
    """A run with two scored chains by two scorers; the second chain has lost its question."""
    run = Run.create(tiny_profile)
    chains = [chain_of(problems[0], TEXT), chain_of(problems[1])]
    run.store(CHAINS, Chain).append(chains[:1])
    for scorer in (FunctionScorer("position", keep_first), RandomScorer(0)):
        run.store(SCORED, ScoredChain).append(scorer.score(chains))
    return run


@pytest.fixture
def panel(run):
    """(description -> control, a function that returns the view's HTML)."""
    root = explore(run).widget
    *rows, view = root.children
    return {control.description: control for row in rows for control in row.children}, lambda: view.value


# The widgets.


def test_what_is_shown_is_what_prune_returns(run, panel):
    controls, page = panel
    chain = next(iter(run.store(SCORED, ScoredChain)))
    count = batch_token_counter(load_tokenizer(run.profile.target))
    for ratio in (0.7, 0.35, 0.1, 1.0):
        controls["ratio"].value = ratio
        pruned = prune(chain, ratio, count_tokens=count)
        assert block(page(), "pruned") == pruned.text
        assert block(page(), "chain") == TEXT
        assert page().count("<mark ") == len(pruned.kept)
        assert block(page(), "counts") == (
            f"{pruned.tokens} of {pruned.original_tokens} target tokens, "
            f"actual ratio {pruned.actual_ratio:.2f} (asked for {ratio:.2f})"
        )


def test_without_a_kernel_a_picture_shows_what_the_widgets_showed_at_first(run, problems):
    shown_live = explore(run)
    *_, view = shown_live.widget.children
    bundle = shown_live._repr_mimebundle_()
    assert bundle["text/html"].endswith(view.value) and "<script" not in bundle["text/html"]
    chosen = shown(bundle["text/html"].removesuffix(view.value))
    assert chosen == (
        f"example: 1. {problems[0].question}scorer: position"
        "ratio: 0.70 · ☐ keep digits · ☐ keep operators · ☐ skip spaces☐ drop consecutive"
    )


def test_every_step_of_the_slider_is_a_ratio(panel):
    controls, page = panel
    slider = controls["ratio"]
    assert (slider.min, slider.max, slider.step, slider.value) == (0.1, 1.0, 0.05, 0.7)
    for step in range(19):
        slider.value = slider.min + step * slider.step
        assert f"(asked for {0.1 + 0.05 * step:.2f})" in block(page(), "counts")
    assert block(page(), "pruned") == TEXT


def test_examples_show_their_question_where_there_is_one(panel, problems):
    controls, page = panel
    assert dict(controls["example"].options) == {f"1. {problems[0].question}": "p0", "2. p1": "p1"}
    controls["example"].value = "p1"
    assert block(page(), "chain") == problems[1].solution


def test_another_scorer_keeps_other_spans(panel):
    controls, page = panel
    assert controls["scorer"].options == ("position", "random")
    controls["ratio"].value = 0.4
    assert TEXT.startswith(beginning := block(page(), "pruned"))
    controls["scorer"].value = "random"
    assert not TEXT.startswith(block(page(), "pruned")) and block(page(), "pruned") != beginning


def test_a_chain_that_a_scorer_has_not_reached_is_said_to_be_so(run, problems, chain_of):
    run.store(SCORED, ScoredChain).append(RandomScorer(0).score([chain_of(problems[2])]))
    *rows, view = explore(run).widget.children
    [example], [scorer] = rows[0].children, rows[1].children
    example.value, scorer.value = "p2", "position"
    assert block(view.value, "counts") == "position has not scored this chain; finish the score stage"


def test_switches_keep_what_they_name(panel):
    controls, page = panel
    controls["ratio"].value = 0.1

    def numbers(text: str) -> list[str]:
        return re.findall(r"\d+", text)

    assert numbers(block(page(), "pruned")) != numbers(TEXT)
    controls["keep digits"].value = True
    assert numbers(block(page(), "pruned")) == numbers(TEXT)
    controls["keep digits"].value, controls["keep operators"].value, controls["ratio"].value = False, True, 0.2
    assert block(page(), "pruned").count("=") == 1 and block(page(), "pruned").count("+") == 1
    controls["keep tokens"].value = " so,, bold , "
    assert {"so", "bold"} <= set(re.findall(r"\w+", block(page(), "pruned")))


def test_drop_consecutive_leaves_one_of_equal_neighbours(run, problems, chain_of):
    text = "so one so two so three so four"
    chains = [chain_of(problems[0], text)]
    run.store(SCORED, ScoredChain).append(FunctionScorer("flat", lambda w: [[0.0] * 8 for _ in w]).score(chains))
    *rows, view = explore(run).widget.children
    controls = {control.description: control for row in rows for control in row.children}
    controls["scorer"].value, controls["ratio"].value, controls["keep tokens"].value = "flat", 0.1, "so"
    assert block(view.value, "pruned") == "so so so so"
    controls["drop consecutive"].value = True
    assert block(view.value, "pruned") == "so"


def test_switches_start_as_the_profile_has_them(run):
    pruning = run.profile.pruning.model_copy(update={"keep_operators": True, "keep_tokens": ["so", "="]})
    run.profile = run.profile.model_copy(update={"pruning": pruning})
    *rows, _ = explore(run).widget.children
    controls = {control.description: control for row in rows for control in row.children}
    values = {name: controls[name].value for name in ("keep digits", "keep operators", "keep tokens")}
    assert values == {"keep digits": False, "keep operators": True, "keep tokens": "so, ="}


def test_a_run_without_scores_names_the_stage_that_makes_them(tiny_profile):
    with pytest.raises(InputError, match="tokenskip_lib score"):
        explore(Run.create(tiny_profile))


# The browser.


@pytest.fixture
def lab(run, tmp_path):
    """The address of a JupyterLab of its own, with one notebook that explores the run."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (extra `notebooks`)")
    folder = tmp_path / "lab"
    (folder / "root").mkdir(parents=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(run.profile.model_dump()))
    code = f"""
from ipywidgets import HTMLMath, VBox
from tokenskip_lib.analyses.explorer import explore
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.experiments.run import Run
profile = load_profile({str(folder / "tiny.yaml")!r})
explorer = explore(Run.open(profile)).widget
typeset = HTMLMath("<p>$x^2$</p>" + explorer.children[-1].value)  # what typesets its content, unlike HTML
typeset.add_class("typeset")
VBox([explorer, typeset])
"""
    cells = [nbformat.v4.new_markdown_cell("# Explorer"), nbformat.v4.new_code_cell(code.strip())]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "root" / "explorer.ipynb")
    with open_lab(folder / "root", folder) as address:
        yield address("explorer.ipynb")


def test_in_jupyterlab_the_slider_prunes_again_and_text_stays_text(page, lab):
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * WAIT_S)
    page.goto(lab)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    explorer = page.locator(".jp-OutputArea-output .widget-vbox .widget-vbox")
    chain, pruned, counts = (explorer.locator(f".tokenskip-{name}") for name in ("chain", "pruned", "counts"))
    expect(counts).to_contain_text("(asked for 0.70)")
    # MathJax is there and has been over the same HTML.
    expect(page.locator(".typeset p mjx-container")).to_have_count(1)
    assert page.locator(".typeset .tokenskip-chain").inner_text() == TEXT
    assert pruned.inner_text().startswith(TEXT[:50])  # both prices: one alone would be no formula
    assert page.locator(".typeset .tokenskip-pruned").inner_text() == pruned.inner_text()

    before, numbers = pruned.inner_text(), counts.inner_text()
    page.locator(".widget-slider .noUi-handle").focus()
    for ratio in ("0.65", "0.60", "0.55", "0.50"):
        page.keyboard.press("ArrowLeft")
        expect(counts).to_contain_text(f"(asked for {ratio})")
    expect(pruned).not_to_have_text(before)
    assert counts.inner_text() != numbers and len(pruned.inner_text()) < len(before)

    assert chain.inner_text() == TEXT  # `$18` and `<b>` as they are, and the line break
    expect(page.locator("mjx-container")).to_have_count(1)
    assert page.locator("[class^=tokenskip-] mjx-container, [class^=tokenskip-] b").count() == 0
    assert pruned.locator("*").count() == 0
