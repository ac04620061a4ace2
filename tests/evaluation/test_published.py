"""What is committed for readers: the README's table, the results and the notebooks are one run."""

import hashlib
import io
import json
import re
import subprocess
from operator import attrgetter
from pathlib import Path

import pandas as pd
import pytest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.evaluation.curves import ratio_control
from tokenskip_lib.evaluation.methods import method_ratios
from tokenskip_lib.evaluation.metrics import METRIC_COLUMNS, markdown_table
from tokenskip_lib.experiments.notebooks import NOTEBOOKS, README_TABLE
from tokenskip_lib.experiments.steps import STAGES, STEPS
from tokenskip_lib.experiments.studies import variant_profiles

ROOT = Path(__file__).resolve().parents[2]


def committed(path: str) -> str:
    """A file as committed: a reader's own `make demo` rewrites results in the working tree."""
    shown = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{path}"], capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("results") / "demo_metrics.csv"
    path.write_text(committed("data/results/demo_metrics.csv"))
    return pd.read_csv(path, keep_default_na=False)


def test_results_have_the_documented_columns_and_enough_problems(metrics):
    assert list(metrics.columns) == METRIC_COLUMNS
    assert set(metrics["n"]) == {load_profile("demo").problems.test_size} and metrics["n"][0] >= 50
    assert metrics["method"][0] == "original" and metrics["accuracy"][0] > 0.4


def test_the_long_version_was_judged_by_as_many_problems_as_its_profile_says():
    metrics = pd.read_csv(io.StringIO(committed("data/results/demo-full_metrics.csv")), keep_default_na=False)
    profile = load_profile("demo-full")
    assert list(metrics.columns) == METRIC_COLUMNS and set(metrics["n"]) == {profile.problems.test_size}
    asked = set(method_ratios(profile.evaluation))
    assert set(zip(metrics["method"], metrics["ratio"], strict=True)) == asked


def test_the_readme_table_is_the_results_file(metrics):
    table = README_TABLE.search(committed("README.md")).group()
    assert markdown_table(metrics) in table


def test_notebook_05_shows_the_results_file(metrics):
    notebook = json.loads(committed("notebooks/05_accuracy_vs_tokens.ipynb"))
    shown = [o["data"].get("text/markdown", "") for c in notebook["cells"] for o in c.get("outputs", []) if "data" in o]
    assert markdown_table(metrics) in ["".join(text) for text in shown]


def test_figures_were_drawn_from_the_tables_that_are_published_with_them(root):
    drawn = {}
    for path in sorted((root / "figures").glob("demo*.json")):
        origin = json.loads(committed(f"figures/{path.name}"))
        if origin["source"].startswith("data/results/"):
            drawn[path.stem] = origin["source"]
            assert hashlib.sha256(committed(origin["source"]).encode()).hexdigest() == origin["source_sha256"], path
    assert drawn["demo_accuracy_vs_tokens"] == "data/results/demo_metrics.csv" and len(drawn) > 5


@pytest.mark.parametrize("name", [NOTEBOOKS[stage] for stage in STAGES])
def test_committed_notebooks_carry_one_complete_demo_run(name):
    notebook = json.loads(committed(f"notebooks/{name}.ipynb"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "profile demo" in json.dumps(outputs)
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert "widgets" not in notebook["metadata"]


@pytest.mark.parametrize("step", [step for step in STEPS if step not in STAGES])
def test_a_notebook_of_studies_shows_one_whole_run_or_nothing(step):
    notebook = json.loads(committed(f"notebooks/{NOTEBOOKS[step]}.ipynb"))
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts and (all(counts) or not any(counts))
    shown = json.dumps([cell.get("outputs") for cell in notebook["cells"]])
    assert ("profile demo-full" in shown) == all(counts) and '"error"' not in shown


@pytest.mark.parametrize(
    ("name", "study"), [(name, study) for name in ("demo-full", "demo-more") for study in load_profile(name).studies]
)
def test_a_studys_results_are_those_of_the_profile(name, study):
    results = pd.read_csv(io.StringIO(committed(f"data/results/{name}_{study}.csv")), dtype=str).fillna("")
    variants = variant_profiles(load_profile(name), study)
    varied = list(dict.fromkeys(key for labels, _ in variants for key in labels))
    for _, profile in variants:
        rows = results[(results[varied] == [str(attrgetter(key)(profile)) for key in varied]).all(axis=1)]
        asked = [(method, str(ratio)) for method, ratio in method_ratios(profile.evaluation)]
        assert sorted(zip(rows["method"], rows["ratio"], strict=True)) == sorted(asked)
        assert set(rows["n"]) == {str(getattr(profile.problems, f"{profile.evaluation.split}_size"))}


def test_the_findings_have_the_seeds_of_the_whole_training():
    table = pd.read_csv(io.StringIO(committed("data/results/demo-more_seeds.csv")))
    [target] = set(table.loc[table["method"] == "original", "accuracy"])
    seeds = table[table["method"] == "tokenskip"].sort_values("ratio", ascending=False)
    names = ("docs/findings.md", "data/README.md", "notebooks/06_what_control_takes.ipynb")
    findings, data, notebook = (" ".join(committed(name).split()) for name in names)
    section = findings.partition("### Three seeds of the last training differ")[2].partition(" ### ")[0]
    for seed, rows in seeds.groupby("training.seed"):
        accuracies = " | ".join(f"{100 * value:.1f}" for value in rows["accuracy"])
        assert f"| seed {seed}: accuracy % | {accuracies} |" in section
    assert f"The target model solves {100 * target:.1f}%." in section

    spread = seeds.groupby("ratio")[["accuracy", "actual_ratio"]].agg(lambda values: values.max() - values.min()).max()
    assert all(f"up to {100 * spread['accuracy']:.1f} points apart" in page for page in (section, data, notebook))
    assert all(f"actual ratios up to {spread['actual_ratio']:.3f}" in page for page in (section, data))

    points = seeds.pivot(index="ratio", columns="training.seed", values="accuracy").sub(target).mul(100)
    mean = points.mean(axis=1).sort_index(ascending=False)
    shown = " | ".join(f"{value:+.1f}" for value in mean)
    assert f"| mean of the seeds: points from the target model | {shown} |" in section
    intervals = section.partition("| mean of the seeds: 95% interval |")[2].partition(" | Three seeds")[0].split(" | ")
    ends = [[float(end) for end in interval.strip(" |").split(" to ")] for interval in intervals[:6]]
    assert len(ends) == len(mean)  # the answers of single problems, which give the intervals, are not published
    assert all(low < value < high for (low, high), value in zip(ends, mean, strict=True))

    assert points.loc[0.7, 1] >= -2 > points.loc[0.7, 2] and (points.loc[0.5, [1, 2]] >= -5).all()
    assert (
        f"seed 2 is {-points.loc[0.7, 2]:.1f} points below the target model at 0.7, so it misses that aim" in findings
    )
    lost = [f"{-mean[ratio]:.1f} points at {ratio} ({low:+.1f} to {high:+.1f})" for ratio, (low, high) in
            ((0.7, ends[3]), (0.5, ends[5]))]  # fmt: skip
    assert f"the loss is {' and '.join(lost)}" in findings


def _control_line(rows: pd.DataFrame, label: str) -> str:
    """A line of the findings' tables of control."""
    half, most = (rows[rows["ratio"] == ratio].iloc[0] for ratio in (0.5, 0.9))
    lengths = " | ".join(
        f"{row['actual_ratio']:.2f} ({row['actual_ratio_low']:.2f}-{row['actual_ratio_high']:.2f})"
        for row in (half, most)
    )
    right = f"{100 * half['accuracy']:.0f} ({100 * half['accuracy_low']:.0f}-{100 * half['accuracy_high']:.0f})"
    share = f"{ratio_control(rows[['ratio', 'actual_ratio']]):+.2f}"
    return f"| {label} | {lengths} | {share} | {right} | {100 * rows['accuracy'].mean():.0f} |"


def test_the_findings_have_the_tables_of_control():
    table = pd.read_csv(io.StringIO(committed("data/results/demo-full_control.csv")))
    table = table[table["method"] == "tokenskip"]
    findings = committed("docs/findings.md")
    kinds = table.groupby(["training.ratios_a_problem", "prompts.marker"])
    paper = kinds.get_group(("all", "eos"))
    lines = [_control_line(rows, f"{count:,}") for count, rows in paper.groupby("rows_trained")]
    assert "\n".join(lines) in findings
    by_rows = paper.groupby("rows_trained")
    share = by_rows[["ratio", "actual_ratio"]].apply(ratio_control)
    blind, reads = share.index[share < 0.1], share.index[share >= 0.1]
    assert f"### Control begins somewhere between {blind[-1]:,} and {reads[0]:,} rows" in findings
    assert f"Up to {blind[-2]:,} rows the answers to 0.5 and to 0.9 have the same length" in findings
    half, most = (paper[paper["ratio"] == ratio].set_index("rows_trained") for ratio in (0.5, 0.9))
    apart = half["actual_ratio_high"] < most["actual_ratio_low"]
    assert list(apart.index[apart]) == list(reads)
    labels = {
        ("all", "eos"): "six ratios a problem, the paper's marker",
        ("one", "eos"): "one ratio a problem, the paper's marker",
        ("all", "words"): "six ratios a problem, words",
        ("all", "token"): "six ratios a problem, a special token",
    }
    few, many = table.query("900 < rows_trained < 1000"), table.query("rows_trained == 11610")
    compared = [(few, kind) for kind in labels] + [(many, ("all", marker)) for marker in ("eos", "token")]
    for rows, (ratios, marker) in compared:
        rows = rows[(rows["training.ratios_a_problem"] == ratios) & (rows["prompts.marker"] == marker)]
        assert _control_line(rows, f"{rows['rows_trained'].iloc[0]:,} | {labels[ratios, marker]}") in findings
        distance = (rows["actual_ratio"] - rows["ratio"]).abs()
        if rows["rows_trained"].iloc[0] < 1000:
            assert abs(ratio_control(rows[["ratio", "actual_ratio"]])) < 0.1
        else:  # "0.01 from the request on average, and 0.04 at 0.5"
            assert f"{distance.mean():.2f} {distance[rows['ratio'] == 0.5].item():.2f}" == "0.01 0.04"


def test_the_log_of_trials_says_how_fast_training_is():
    log = " ".join(committed("docs/log-of-trials.md").split())
    table = pd.read_csv(io.StringIO(committed("data/results/training.csv")))
    pairs = {name: (rows.iloc[0], rows.iloc[1]) for name, rows in table.groupby("comparison")}
    times = {name: other["seconds"] / ours["seconds"] for name, (other, ours) in pairs.items()}
    labels = {
        "9bda3b6": "commit 9bda3b6",
        "one ratio a problem": "transformers' Trainer, one ratio a problem",
        "six ratios a problem": "transformers' Trainer, six ratios a problem",
    }
    for name, label in labels.items():
        other, ours = pairs[name]
        assert (
            f"| {label} | {ours['rows']:.0f} | {ours['steps']:.0f} | {other['seconds']} | {ours['seconds']} | "
            f"{times[name]:.2f} |" in log
        )
        assert other["mean_loss"] == ours["mean_loss"]
    _, six = pairs["six ratios a problem"]
    shares = [f"{100 * pairs[name][1]['share_of_peak']:.0f}%" for name in list(labels)[1:]]
    assert f"reaches {shares[0]} of the processor's peak with one ratio a problem, and {shares[1]} with six" in log
    linear, reached = six["linear_layers"], six["share_of_peak"]
    assert f"take {100 * linear:.0f}% of a step" in log
    assert f"{1 / linear:.2f} times as fast as now, and reach {100 * reached / linear:.0f}% of the peak" in log
    assert f"takes {times['one product']:.0f} times as long as in float32" in log
    assert f"makes a step {times['one step']:.2f} times as fast" in log


def test_the_findings_have_the_intervals_of_the_small_studies():
    words = " ".join(committed("docs/findings.md").split())
    tables = {
        name: pd.read_csv(io.StringIO(committed(f"data/results/demo-full_{name}.csv")))
        for name in ("control", "budget", "timings")
    }
    control = tables["control"]
    original = control[control["method"] == "original"].iloc[0]
    solved, low, high = (100 * original[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    said = f"The target model solves {solved:.1f}% ({low:.1f}-{high:.1f}) of these {original['n']} problems"
    assert said in words
    half = tables["budget"].query("method == 'tokenskip' and ratio == 0.5").set_index("evaluation.budget")
    ends = [
        f"{100 * half.loc[rule, 'accuracy']:.1f}% ({100 * half.loc[rule, 'accuracy_low']:.1f}-"
        f"{100 * half.loc[rule, 'accuracy_high']:.1f})" for rule in ("scaled", "fixed")
    ]  # fmt: skip
    assert f"gives {' instead of '.join(ends)}" in words
    speed = tables["timings"].query("method == 'tokenskip'").set_index("ratio")
    cells = [
        f"{speed.loc[ratio, 'speedup']:.2f} ({speed.loc[ratio, 'speedup_low']:.2f}-"
        f"{speed.loc[ratio, 'speedup_high']:.2f})" for ratio in (0.7, 0.6, 0.5)
    ]  # fmt: skip
    assert f"| measured | {' | '.join(cells)} |" in words


def test_the_log_of_trials_has_the_figures_of_the_remedies():
    table, page = (committed(name) for name in ("data/results/demo-full_remedies.csv", "docs/log-of-trials.md"))
    section = page.partition("## Going on from the first adapter")[2].partition("\n## ")[0]
    remedies = pd.read_csv(io.StringIO(table))
    for trial, both in remedies.groupby("trial", sort=False):
        [line] = [line for line in section.splitlines() if line.startswith(f"| {trial} |")]
        for row in both.itertuples():
            interval = f"{row.against_first_low:+.1f} to {row.against_first_high:+.1f}"
            apart = "-" if trial == "first adapter" else f"{row.against_first:+.1f} ({interval})"
            assert f"| {100 * row.accuracy:.1f} | {apart} |" in line
    beyond_noise = remedies[remedies["against_first_low"] > 0]
    rounded, adopted = "the last, rounded to 8 bits", "5,000 problems in one training, rounded to 8 bits"
    assert set(zip(beyond_noise["trial"], beyond_noise["ratio"], strict=True)) == {
        ("the same, gone on with others", 0.5), (rounded, 0.5), (adopted, 0.7), (adopted, 0.5)
    }  # fmt: skip
    assert (remedies["against_first_high"] >= 0).all()
    last = remedies[remedies["trial"] == adopted].set_index("ratio")
    said = {
        (column, ratio): (f"{row[column]:+.1f}", f"({row[column + '_low']:+.1f} to {row[column + '_high']:+.1f})")
        for column in ("points", "against_first")
        for ratio, row in last.iterrows()
    }
    (near, its_ends), (far, far_ends) = said["points", 0.7], said["points", 0.5]
    words = " ".join(section.split())
    assert f"less the target model's is {near} points at 0.7 {its_ends}, and {far} points at 0.5 {far_ends}" in words
    gains = [
        f"{points} points at {ratio} {ends}" for (column, ratio), (points, ends) in said.items() if column != "points"
    ]
    findings = " ".join(committed("docs/findings.md").split())
    assert f"it gains {' and '.join(gains)}" in findings
    assert f"{near.lstrip('-')} points below the target model at 0.7 {its_ends}" in findings
    assert f"and {far.lstrip('-')} points below at 0.5 {far_ends}" in findings
    before, after = remedies["held_out_loss"].dropna().unique(), remedies["result_loss"].dropna().unique()
    assert "fell from {:.4f} to {:.4f}".format(*before) in section
    assert "rose from {:.4f} to {:.4f}".format(*after) in " ".join(section.split())
    one_row = ["many problems, one ratio each", "the same, gone on with others", rounded, adopted]
    six_rows = remedies[~remedies["trial"].isin(["first adapter", *one_row])]
    assert six_rows.loc[six_rows["ratio"] == 0.5, "against_first"].max() < 2.4 and set(remedies["n"]) == {500}


def test_the_findings_have_the_committed_adapters_paired_intervals():
    table = pd.read_csv(io.StringIO(committed("data/results/demo-more_comparison.csv")))
    rows = table[table["method"] == "tokenskip"].sort_values("ratio", ascending=False)
    assert list(rows["ratio"]) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5] and set(rows["n"]) == {500}
    ends = [
        f"{100 * low:+.1f} to {100 * high:+.1f}"
        for low, high in zip(rows["difference_low"], rows["difference_high"], strict=True)
    ]
    findings = committed("docs/findings.md")
    assert f"| committed: 95% interval of the points, problem by problem | {' | '.join(ends)} |" in findings
    points = re.findall(r"\(([+-]\d+\.\d)\)", re.search(r"\| committed: accuracy.*\n", findings)[0])
    assert points == [f"{100 * difference:+.1f}" for difference in rows["difference"]]


def test_the_findings_say_how_many_lost_answers_have_a_false_equation():
    losses = pd.read_csv(io.StringIO(committed("data/results/demo-more_losses.csv")))
    rows = losses[losses["method"] == "tokenskip"].set_index("ratio")
    long, short = rows[rows.index >= 0.7], rows[rows.index < 0.7].sum()
    words = " ".join(committed("docs/findings.md").split())
    assert (long["lost"] == long["wrong_equation"]).all()
    assert f"{rows.loc[0.7, 'wrong_equation']} of {rows.loc[0.7, 'lost']} at 0.7" in words
    assert f"At 0.6 and 0.5 it is {short['wrong_equation']} of {short['lost']} " in words
    assert f"The other {short['uncheckable']} cannot be checked" in words
    assert short["lost"] == short["wrong_equation"] + short["uncheckable"]


def test_the_findings_have_the_loss_against_new_rows():
    remedies = pd.read_csv(io.StringIO(committed("data/results/demo-full_remedies.csv")))
    trials = {
        "none": "first adapter",
        "new problems, one ratio each": "many problems, one ratio each",
        "the same, gone on with others": "the same, gone on with others",
        "all in one training (the committed adapter)": "5,000 problems in one training, rounded to 8 bits",
    }
    count = 0
    for label, trial in trials.items():
        rows = remedies[remedies["trial"] == trial].set_index("ratio")
        new = 0 if label == "none" else int(rows.loc[0.5, "rows_trained"])
        count = count + new if "gone on" in label else new
        cells = [
            f"{row['points']:+.1f} ({row['points_low']:+.1f} to {row['points_high']:+.1f})"
            for row in (rows.loc[0.7], rows.loc[0.5])
        ]
        assert f"| {label} | {count:,} | {cells[0]} | {cells[1]} |" in committed("docs/findings.md")


def test_the_readme_has_the_interval_of_the_findings_at_the_smallest_ratio():
    row = re.search(r"\| committed: 95% interval of the points.*\| (\S+) to (\S+) \|\n", committed("docs/findings.md"))
    assert row and f"difference is between {row[1]} and {row[2]} points" in " ".join(committed("README.md").split())


def test_the_readme_is_short():
    assert committed("README.md").count("\n") <= 200


@pytest.mark.parametrize("name", ["target_adapter", "tokenskip_adapter"])
def test_data_readme_states_what_a_committed_adapter_was_made_with(name):
    summary = json.loads(committed(f"data/{name}/summary.json"))
    section = committed("data/README.md").partition(f"## {name}/")[2].partition("\n## ")[0]
    assert f"| seed | {summary['seed']} |" in section
    assert f"{summary['rows_trained']} trained, {summary['rows_held_out']} held out" in section
    assert f"{summary['tokens_an_epoch']:,} tokens, {summary['steps']} steps" in section
    assert f"| held-out loss | {summary['held_out_loss']} nats" in section
    assert f"| time | {summary['seconds'] / 60:.0f} minutes" in section
    weights = ROOT / "data" / name / "adapter_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in section and weights.stat().st_size <= 10_000_000


def test_data_readme_states_what_the_target_model_measured():
    measured = json.loads(committed("data/target_adapter/summary.json"))["validation"]
    interval = f"{100 * measured['accuracy_low']:.1f}-{100 * measured['accuracy_high']:.1f}, n = {measured['n']}"
    assert f"{100 * measured['accuracy']:.1f}% (95% interval {interval})" in committed("data/README.md")
    assert measured["accuracy"] >= 0.75 and measured["n"] >= 500
