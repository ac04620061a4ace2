"""The page: its rows are the run's records, its texts stay texts, and a browser shows them from a file."""

import json
import re

import pandas as pd
import pytest

from tokenskip_lib.analyses.page import MADE_BY, make_page, page_data, page_html, read_page
from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import InputError, Prediction, Problem
from tokenskip_lib.evaluation.comparison import compare_methods, pair_outcomes
from tokenskip_lib.evaluation.metrics import METRIC_COLUMNS, compute_metrics
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import PREDICTIONS, TEST_PROBLEMS
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.models.tokens import token_counter

HOSTILE = "</script><script>document.title='taken'</script><img src=http://127.0.0.1:9/x> \u2028 3 + 4 = 7 & 😀 7"
# (method, ratio) -> the chain of each of the four problems; "" is a chain that is not there
CHAINS = {
    ("original", 1.0): ["He has 3 + 4 = 7 apples.", "She reads 12 * 5 = 60 pages.", HOSTILE, ""],
    ("tokenskip", 0.9): ["He has 3 + 4 = 7", "reads 12 * 5 = 60 pages", HOSTILE, "6"],
    ("tokenskip", 0.5): ["3+4=7", "12*5=50", "9/3=3", "14"],
    ("truncation", 0.5): ["He has 3", "She", "Each", "First"],
    ("adapter_scaling", 0.75): ["has 3 + 4 = 7", "12 * 5 = 60", "9 / 3 = 3", "14"],
}
RIGHT = {
    ("original", 1.0): [True, True, False, False],
    ("tokenskip", 0.9): [True, True, True, False],
    ("tokenskip", 0.5): [True, False, True, False],
    ("truncation", 0.5): [False] * 4,
    ("adapter_scaling", 0.75): [True, True, True, True],
}


@pytest.fixture
def run(tiny_profile, problems, tiny_tokenizer) -> Run:
    """An evaluated run: four problems with made answers, one of them with hostile text, one with an empty chain."""
    settings = {
        "evaluation.methods": {"original": [], "tokenskip": [0.5, 0.9], "truncation": [0.5], "adapter_scaling": [0.75]},
        "importance.compare_with": ["random", "position"],
    }
    run = Run.create(with_overrides(tiny_profile, settings, where="test"))
    asked = problems[:4]
    asked[2] = asked[2].model_copy(update={"answer": "<b>3</b>"})
    count = token_counter(tiny_tokenizer)
    run.store(TEST_PROBLEMS, Problem).append(asked)
    run.store(PREDICTIONS, Prediction).append(
        Prediction(
            id=problem.id,
            method=method,
            ratio=ratio,
            answer=problem.answer,
            output=chain,
            chain=chain,
            prediction=problem.answer if right else None,
            is_correct=right,
            chain_tokens=count(chain),
            answer_tokens=0,
            max_new_tokens=64,
            cut_off=method == "truncation",
            seconds=0.25,
        )
        for (method, ratio), chains in CHAINS.items()
        for problem, chain, right in zip(asked, chains, RIGHT[method, ratio], strict=True)
    )
    return run


@pytest.fixture
def data(run) -> dict:
    return page_data(run, 4)


# Rows.


def test_points_are_the_metrics_and_the_comparison_with_the_original(run, data):
    predictions = list(run.store(PREDICTIONS, Prediction))
    points = pd.DataFrame(data["points"])
    expected = compute_metrics(predictions, scorer=run.profile.pruned_by, seed=run.profile.training_seed)
    pd.testing.assert_frame_equal(points[METRIC_COLUMNS], expected)
    assert list(points["level"]) == ["", "0.9", "0.5", "0.5", "strength 0.75"]
    compared = compare_methods(pair_outcomes([predictions])).set_index(["method", "ratio"])
    for point in data["points"][1:]:
        row = compared.loc[(point["method"], point["ratio"])]
        assert (point["lost"], point["gained"]) == (row["lost"], row["gained"])
        assert point["difference"] == pytest.approx(row["difference"], abs=1e-4)
    assert (points["lost"][2], points["gained"][2], data["points"][0]["difference"]) == (1, 1, 0)


def test_each_answer_is_its_prediction(run, data):
    by_key = {prediction.key: prediction for prediction in run.store(PREDICTIONS, Prediction)}
    assert [problem["id"] for problem in data["problems"]] == ["p0", "p1", "p2", "p3"]
    for problem in data["problems"]:
        assert len(problem["answers"]) == len(data["points"]) == 5
        for answer, point in zip(problem["answers"], data["points"], strict=True):
            prediction = by_key[problem["id"], point["method"], point["ratio"]]
            assert data["texts"][answer["text"]] == prediction.chain.strip()
            assert (answer["right"], answer["tokens"]) == (prediction.is_correct, prediction.chain_tokens)
            assert (answer["stated"], answer["seconds"]) == (prediction.prediction, prediction.seconds)
    assert len(set(data["texts"])) == len(data["texts"])


def test_pruned_chains_are_the_originals_at_every_ratio_by_every_scorer(run, data):
    count = token_counter(load_tokenizer(run.profile.target))
    assert data["ratios"] == [0.5, 0.9]
    names = [scorer["name"] for scorer in data["scorers"]]
    assert names == ["selective_context", "random", "position"]
    for problem in data["problems"][:3]:
        whole = data["texts"][problem["chain"]]
        assert list(problem["pruned"]) == names and problem["answers"][0]["tokens"] == count(whole)
        for half, most in problem["pruned"].values():
            assert len(half["kept"]) == len(problem["spans"]) and set(half["kept"]) <= {"0", "1"}
            assert half["tokens"] == count(data["texts"][half["text"]]) <= most["tokens"] < count(whole)
            pieces = [whole[a:b] for (a, b), kept in zip(problem["spans"], half["kept"], strict=True) if kept == "1"]
            assert re.sub(r"\s", "", data["texts"][half["text"]]) == re.sub(r"\s", "", "".join(pieces))
    assert data["problems"][3]["pruned"] == {} and data["problems"][3]["spans"] == []
    kept = [problem["pruned"]["position"][0]["kept"] for problem in data["problems"][:3]]
    assert all(one == "1" * one.count("1") + "0" * one.count("0") for one in kept)  # the beginning of each chain


def test_fewer_problems_leave_the_metrics_as_they_are(run, data):
    fewer = page_data(run, 2)
    assert [problem["id"] for problem in fewer["problems"]] == ["p0", "p1"]
    assert fewer["points"] == data["points"] and fewer["n"] == 4


# The file.


def test_a_page_gives_its_data_back_and_no_text_ends_the_script(data):
    html = page_html(data)
    assert read_page(html) == json.loads(json.dumps(data))
    inline = html.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in inline and "\u2028" not in inline and HOSTILE.partition("</")[0] in inline
    assert html.count("<script") == html.count("</script>") == 2


def test_a_page_names_nothing_to_load(data):
    clean = {**data, "texts": ["" for _ in data["texts"]]}
    html = page_html(clean)
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|\bsrc=|<link|\bfetch\(|XMLHttp", html)
    assert "default-src 'none'" in html and "unsafe" not in html
    script = html.rpartition("<script>")[2]
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


def test_only_pages_are_written_over(run, tmp_path):
    path = make_page(run, str(tmp_path / "new" / "page.html"), problems=1)
    assert MADE_BY in path.read_text()
    assert make_page(run, str(path), problems=2) == path
    assert len(read_page(path.read_text())["problems"]) == 2
    own = tmp_path / "own.html"
    own.write_text("<p>mine</p>")
    with pytest.raises(InputError, match=r"own\.html: there already, and not made by `page`"):
        make_page(run, str(own))
    assert own.read_text() == "<p>mine</p>"
    with pytest.raises(InputError, match=r"no page that `tokenskip page` made"):
        read_page(own.read_text())
    with pytest.raises(InputError, match=r"name it NAME\.html"):
        make_page(run, str(tmp_path / "page.png"))


def test_a_run_without_answers_names_the_stage_that_makes_them(tiny_profile, tmp_path):
    with pytest.raises(InputError, match="tokenskip_lib evaluate"):
        make_page(Run.create(tiny_profile), str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_an_unfinished_run_is_refused(run, tmp_path):
    path = run.folder / PREDICTIONS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="'p3' was not answered by every method and seed; finish the run first"):
        make_page(run, str(tmp_path / "page.html"))


# The browser.


@pytest.fixture
def opened(page, data, tmp_path):
    """The page of the run, opened from a file; and all that the browser asked for."""
    path = tmp_path / "page.html"
    path.write_text(page_html(data), encoding="utf-8")
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(path.as_uri())
    page.asked = asked
    yield page
    assert errors == []


def checked(page) -> str:
    return page.locator("#chart [aria-checked=true]").get_attribute("aria-label")


def test_the_ratio_moves_the_text_the_tokens_and_the_point(opened, data):
    by_ratio = {}
    slider = opened.get_by_label("Ratio", exact=True)
    for index, ratio in [(1, "0.9"), (0, "0.5")]:
        slider.fill(str(index))
        assert opened.locator("#ratio-value").inner_text() == ratio
        problem = data["problems"][0]
        point = next(n for n, p in enumerate(data["points"]) if (p["method"], p["level"]) == ("tokenskip", ratio))
        answer, pruned = problem["answers"][point], problem["pruned"]["selective_context"][index]
        written, kept = opened.locator("#right-card"), opened.locator("#left-card")
        assert written.locator(".chain").inner_text() == data["texts"][answer["text"]]
        assert f"{answer['tokens']} tokens" in written.inner_text() and "✓ right: 7" in written.inner_text()
        assert "0.25 s" in written.inner_text()
        assert kept.locator(".chain").inner_text() == data["texts"][problem["chain"]]
        assert kept.locator(".left-over").inner_text() == data["texts"][pruned["text"]].strip()
        assert f"{pruned['tokens']} of {problem['answers'][0]['tokens']} tokens" in kept.inner_text()
        struck = "".join(kept.locator("s").all_inner_texts())
        skipped = [span for span, bit in zip(problem["spans"], pruned["kept"], strict=True) if bit == "0"]
        whole = data["texts"][problem["chain"]]
        assert re.sub(r"\s", "", struck) == re.sub(r"\s", "", "".join(whole[a:b] for a, b in skipped)) != ""
        by_ratio[ratio] = (checked(opened), opened.locator("#now").inner_text(), opened.locator("#lost").inner_text())
    assert by_ratio["0.9"][0].startswith("tokenskip at 0.9: 75.0% right")
    assert by_ratio["0.5"][0].startswith("tokenskip at 0.5: 50.0% right")
    assert "+25.0 points" in by_ratio["0.9"][1] and "+0.0 points" in by_ratio["0.5"][1]
    assert by_ratio["0.9"][2] == "" and "Mary reads 12 pages" in by_ratio["0.5"][2]


def test_nothing_is_asked_for_but_the_file_and_hostile_text_is_text(opened, data):
    opened.get_by_label("Problem", exact=True).select_option("2")
    chain = opened.locator("#left-card .chain")
    assert chain.evaluate("element => element.textContent") == HOSTILE
    struck = data["problems"][2]["pruned"]["selective_context"][0]["kept"].count("0")
    assert struck and 0 < chain.locator("s").count() <= struck
    assert opened.locator("#gold").inner_text().startswith("Answer: <b>3</b>.")
    assert opened.title() == "TokenSkip: smoke" and opened.locator("img, #gold b").count() == 0
    assert [url for url in opened.asked if not url.startswith("file://")] == [] and len(opened.asked) == 1


def test_a_point_is_chosen_by_pointer_and_by_keys(opened):
    card = opened.locator("#point")
    marks = opened.locator("#chart [role=radio]")
    assert marks.count() == 5 and checked(opened).startswith("tokenskip at 0.5")
    marks.nth(0).hover()
    assert card.locator("h3").inner_text() == "original" and "He has 3 + 4 = 7 apples." in card.inner_text()
    assert checked(opened).startswith("tokenskip at 0.5")  # to look is not to choose
    marks.nth(1).click()
    assert checked(opened).startswith("tokenskip at 0.9") and opened.locator("#ratio-value").inner_text() == "0.9"
    opened.keyboard.press("ArrowRight")
    assert checked(opened).startswith("tokenskip at 0.5") and opened.locator("#ratio-value").inner_text() == "0.5"
    opened.keyboard.press("ArrowRight")
    assert checked(opened).startswith("truncation at 0.5") and "cut off before an answer" in card.inner_text()
    opened.keyboard.press("ArrowRight")
    assert checked(opened).startswith("adapter_scaling at strength 0.75")
    assert opened.locator("#right").input_value() == "point:4"
    assert opened.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"


def test_all_can_be_done_by_keys_alone(opened):
    reached = set()
    for _ in range(60):
        opened.keyboard.press("Tab")
        reached.add(opened.evaluate("document.activeElement.id || document.activeElement.getAttribute('role') || ''"))
    assert {"theme", "ratio", "zoom", "radio", "problems", "after", "left", "right"} <= reached
    opened.locator("#ratio").focus()
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#ratio-value").inner_text() == "0.9"
    assert opened.locator("#ratio").get_attribute("aria-valuetext") == "0.9"
    names = "Array.from(document.querySelectorAll('button, select, input')).filter(e => !(e.labels?.length || "
    assert opened.evaluate(names + "e.textContent.trim() || e.getAttribute('aria-label'))).length") == 0


def test_two_methods_or_two_scorers_are_compared_on_one_problem(opened, data):
    left, right = opened.locator("#left"), opened.locator("#right")
    right.select_option("scorer:position")
    problem = data["problems"][0]
    for side, scorer in [("left", "selective_context"), ("right", "position")]:
        text = data["texts"][problem["pruned"][scorer][0]["text"]].strip()
        assert opened.locator(f"#{side}-card .left-over").inner_text() == text
    left.select_option("point:0")
    right.select_option("method:truncation")
    assert opened.locator("#left-card .chain").inner_text() == "He has 3 + 4 = 7 apples."
    assert "cut off before an answer" in opened.locator("#right-card").inner_text()
    opened.get_by_label("Ratio", exact=True).fill("1")
    said = "truncation was not asked at ratio 0.9, only at 0.5."
    assert opened.locator("#right-card").inner_text() == said == opened.locator("#now").inner_text()
    assert opened.locator("#chart [aria-checked=true]").count() == 0


def test_a_lost_problem_opens_and_a_link_keeps_what_is_shown(opened, page):
    opened.get_by_label("Ratio", exact=True).fill("0")
    assert opened.locator("#changes-note").inner_text().startswith("tokenskip at 0.5 loses 1 and gains 1 of 4 problems")
    opened.locator("#lost button").click()
    assert opened.locator("#question").inner_text().startswith("Mary reads")
    assert "✗ wrong" in opened.locator("#right-card").inner_text()
    assert opened.evaluate("document.activeElement.id") == "problem-title"
    bar, heading = opened.locator("#bar").bounding_box(), opened.locator("#problem-title").bounding_box()
    assert heading["y"] >= bar["y"] + bar["height"]  # not under the bar
    link = opened.url
    assert "problem=p1" in link and "ratio=0.5" in link
    opened.goto("about:blank")
    opened.goto(link)
    assert opened.locator("#question").inner_text().startswith("Mary reads")
    opened.goto("about:blank")
    opened.goto(link.partition("#")[0] + "#problem=<b>&ratio=7&left=scorer:none&right=")
    assert opened.locator("#question").inner_text().startswith("Tom has")


def test_a_problem_without_a_chain_says_so(opened):
    opened.get_by_label("Problem", exact=True).select_option("3")
    assert opened.locator("#left-card").inner_text() == "The original wrote no chain here."


def test_methods_can_be_hidden_and_the_axis_shown_closer(opened):
    opened.get_by_role("button", name="truncation").click()
    assert opened.locator("#chart [role=radio]").count() == 4
    opened.get_by_role("button", name="truncation").click()
    opened.get_by_label("zoom in").check()
    assert "truncation at 0.5 (0.0%)" in opened.locator("#chart-note").inner_text()
    opened.get_by_label("ratio asked for").check()
    assert "adapter_scaling at strength 0.75 (100.0%)" in opened.locator("#chart-note").inner_text()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_width_and_text_is_readable_in_both_themes(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    ground = set()
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        pairs = [("body", "body"), ("#gold .right", "body"), ("#left-card s", "#left"), ("#left-card .note", ".card")]
        for text, behind in pairs:
            ink, paper = (
                opened.evaluate(style.format(*place)) for place in ((text, "color"), (behind, "backgroundColor"))
            )
            assert contrast(ink, paper) >= 4.5, (scheme, text, ink, paper)
        ground.add(opened.evaluate(style.format("body", "backgroundColor")))
    assert len(ground) == 2
    opened.get_by_role("button", name="☀ light").click()
    assert opened.evaluate(style.format("body", "backgroundColor")) == "rgb(255, 255, 255)"


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, `rgb(0, 0, 0)`, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


# The page that is committed.


def test_the_committed_page_has_this_code_and_docs_say_its_numbers(root):
    path = root / "docs" / "_static" / "explorer.html"
    html = path.read_text(encoding="utf-8")
    committed = read_page(html)
    assert page_html(committed) == html, f"the page's code changed: write page_html(read_page(...)) to {path}"
    assert path.stat().st_size < 3_000_000
    said = (root / "docs" / "explore.md").read_text(encoding="utf-8")
    by_level = {(point["method"], point["level"]): point for point in committed["points"]}
    half, asked = by_level["tokenskip", "0.5"], committed["n"]
    for words in [
        f"all {len(committed['problems'])} test problems of the demo",
        f"solves {100 * half['accuracy']:.1f}% of the {asked} problems, with {half['chain_tokens']:.1f} tokens",
        f"loses {half['lost']} of the {asked} problems and gains {half['gained']}",
    ]:
        assert words in " ".join(said.split())
    published = pd.read_csv(root / "data" / "results" / "demo_metrics.csv").set_index(["method", "ratio"])
    points = pd.DataFrame(committed["points"]).set_index(["method", "ratio"])
    assert set(points.index) == set(published.index)
    assert (points["accuracy"] == published["accuracy"]).all()
    assert "the accuracies are the same" in " ".join(said.split())
