"""`place`: files of predictions drawn over published rows, what counted their tokens said, nothing written over."""

import hashlib
import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tokenskip_lib.analyses.place import place, placement_figure, report
from tokenskip_lib.core.records import InputError

AGAINST = "qwen2.5-7b-gsm8k"


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def files(tmp_path):
    """Two files on the same four problems, in two forms; the second has a row too much."""
    golds = ["7", "60", "3", "14"]
    whole = [{"id": i, "question": f"Q{i}?", "answer": gold, "output": f"so it is \\boxed{{{gold}}}", "chain_tokens": 9}
             for i, gold in enumerate(golds)]  # fmt: skip
    short = [{"doc": {"question": f"Q{i}?"}, "target": f"#### {gold}", "resps": [["\\boxed{7}"]], "cot_length": 4}
             for i, gold in enumerate(golds)]  # fmt: skip
    (tmp_path / "whole.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    (tmp_path / "short.json").write_text(json.dumps([*short, {"resps": [["x"]], "cot_length": 4}]))
    return [str(tmp_path / "whole.jsonl"), str(tmp_path / "short.json")]


def test_files_are_placed_compared_and_what_was_dropped_is_said(files, tmp_path, tiny_target):
    made = place(files, AGAINST, str(tmp_path / "out" / "mine.png"), tokenizer=str(tiny_target))
    assert made.placed[["method", "n", "accuracy"]].to_numpy().tolist() == [["whole", 4, 100.0], ["short", 4, 25.0]]
    assert made.paired[["method", "n", "lost"]].to_numpy().tolist() == [["short", 4, 3]]
    said = report(made)
    assert f"the tokenizer of {tiny_target.name}, not the model's own" in said
    assert "short.json: 1 answer dropped (1: no 'answer'" in said and "openai/gsm8k, split test" in said
    assert "100.0 (51.0 to 100.0)" in said and "-75.0" in said and "mist" in said
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [f"mine.{end}" for end in ("csv", "json", "png", "svg")]


def test_the_table_has_the_ledgers_columns_for_both_and_the_json_its_digest(files, tmp_path, tiny_target, root):
    path = tmp_path / "mine.png"
    place(files, AGAINST, str(path), tokenizer=str(tiny_target))
    table = pd.read_csv(path.with_suffix(".csv"))
    with (root / "tokenskip_lib" / "evaluation" / "published_results.csv").open() as ledger:
        columns = ledger.readline().strip().split(",")
    assert list(table.columns[: len(columns)]) == columns
    assert table.loc[table["method"].isin(["whole", "short"]), "ratio"].isna().all()  # no answer states one
    paper = table[table["source"].str.startswith("TokenSkip paper")].set_index(["method", "ratio"])
    assert paper.loc[("tokenskip", 0.5), ["accuracy", "tokens"]].tolist() == [86.0, 151.44]
    origin = json.loads(path.with_suffix(".json").read_text())
    assert origin["source_sha256"] == hashlib.sha256(path.with_suffix(".csv").read_bytes()).hexdigest()
    assert set(origin["predictions"]) == set(files)
    assert [(row["method"], row["lost"]) for row in origin["paired"]] == [("short", 3)]
    assert origin["graded"] == {"layout": "answer", "answer_phrases": []}


def test_a_files_name_starts_no_formula_in_a_spreadsheet(files, tmp_path):
    (tmp_path / "whole.jsonl").rename(tmp_path / "=1+1.jsonl")
    place([str(tmp_path / "=1+1.jsonl")], AGAINST, str(tmp_path / "mine.png"))
    assert "'=1+1" in pd.read_csv(tmp_path / "mine.csv")["method"].tolist()


def test_think_tags_and_a_ratio_that_is_no_number_are_noted(tmp_path, tiny_target):
    said = {"output": "<think>3 + 4 = 7.</think>\\boxed{7}", "answer": "7"}
    rows = [{"id": i, **said} for i in range(2)] + [{"id": 2, **said, "ratio": "half"}]
    (tmp_path / "r1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = {
        layout: place([str(tmp_path / "r1.jsonl")], AGAINST, str(tmp_path / f"{layout}.png"),
                      tokenizer=str(tiny_target), layout=layout).notes
        for layout in ("answer", "think")
    }  # fmt: skip
    dropped = f"{tmp_path / 'r1.jsonl'}: 1 answer dropped (1: a 'ratio' that is not a small number)"
    assert notes["think"] == [dropped]
    assert notes["answer"][0] == dropped and "2 of 2 outputs have <think> tags" in notes["answer"][1]


def test_problems_of_one_question_that_are_not_paired_are_counted(tmp_path, tiny_target):
    rows = [{"id": i, "question": "Same?", "answer": "7", "output": "\\boxed{7}"} for i in range(3)]
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    made = place(sources, AGAINST, str(tmp_path / "mine.png"), tokenizer=str(tiny_target))
    assert made.paired["n"].tolist() == [1]
    assert made.notes == ["two: 2 answers have no partner in one, or share a question"]


def test_every_placed_and_published_point_is_drawn_and_named(files, tmp_path, tiny_target):
    made = place(files, AGAINST, str(tmp_path / "mine.png"), tokenizer=str(tiny_target))
    panels = placement_figure(made).axes
    drawn = {text.get_text() for axes in panels for text in axes.texts}
    assert {"whole (n = 4)", "short (n = 4)", "tokenskip, TokenSkip paper", "tokenskip, zsq259", "0.5", "0.9"} <= drawn
    points = {(round(x, 2), round(y, 2)) for axes in panels for line in axes.lines for x, y in line.get_xydata()}
    assert {(151.44, 86.0), (178.0, 89.5), (297.83, 91.4)} <= points
    assert "not the model's own" in panels[-1].get_xlabel()


def test_without_the_models_tokenizer_the_counts_in_the_files_are_taken_and_said(files, tmp_path):
    made = place(files, AGAINST, str(tmp_path / "mine.png"))
    assert made.placed["tokens"].tolist() == [9.0, 4.0]
    assert set(made.placed["counted_by"]) == {"the files themselves"} and "the files themselves" in report(made)


def test_without_a_tokenizer_and_without_counts_one_line_says_so(tmp_path):
    (tmp_path / "bare.jsonl").write_text('{"output": "7", "answer": "7"}\n')
    with pytest.raises(InputError, match=r"tokenizer of Qwen/Qwen2\.5-7B-Instruct is not at hand") as refused:
        place([str(tmp_path / "bare.jsonl")], AGAINST, str(tmp_path / "mine.png"))
    assert "\n" not in str(refused.value) and [path.name for path in tmp_path.iterdir()] == ["bare.jsonl"]


def test_its_own_files_are_written_again_and_no_others(files, tmp_path):
    path = tmp_path / "mine.png"
    place(files, AGAINST, str(path))
    before = path.with_suffix(".csv").read_bytes()
    place(files, AGAINST, str(path))
    assert path.with_suffix(".csv").read_bytes() == before
    path.with_suffix(".json").write_text('{"profile": "demo"}')
    with pytest.raises(InputError, match=r"mine\.png: there already, and not made by `place`"):
        place(files, AGAINST, str(path))
    (tmp_path / "table.csv").write_text("mine\n")
    with pytest.raises(InputError, match=r"table\.csv: there already"):
        place(files, AGAINST, str(tmp_path / "table.png"))
    with pytest.raises(InputError, match=r"short\.json: there already"):  # the predictions themselves
        place(files, AGAINST, str(tmp_path / "short.png"))
    assert (tmp_path / "table.csv").read_text() == "mine\n"


@pytest.mark.parametrize(("output", "says"), [("figure.pdf", "the figure is a PNG"), ("figure", "the figure is a PNG")])
def test_another_kind_of_figure_is_refused(files, tmp_path, output, says):
    with pytest.raises(InputError, match=says):
        place(files, AGAINST, str(tmp_path / output))


def test_files_of_one_name_are_called_by_their_paths(files, tmp_path):
    (tmp_path / "again").mkdir()
    second = tmp_path / "again" / "whole.jsonl"
    second.write_bytes((tmp_path / "whole.jsonl").read_bytes())
    made = place([files[0], str(second)], AGAINST, str(tmp_path / "mine.png"))
    assert made.placed["method"].tolist() == [files[0], str(second)]


def test_a_name_with_dollars_is_drawn_as_it_is(files, tmp_path):
    odd = tmp_path / "costs $\\frac{1$.jsonl"
    odd.write_bytes((tmp_path / "whole.jsonl").read_bytes())
    place([str(odd)], AGAINST, str(tmp_path / "mine.png"))
    assert "costs $\\frac{1$" in (tmp_path / "mine.svg").read_text()


def test_the_command_prints_the_report_and_refuses_in_one_line(files, tmp_path, tokenskip):
    done = tokenskip("place", *files, "--against", "Qwen2.5-7B-Instruct/gsm8k", "-o", tmp_path / "mine.png")
    assert done.returncode == 0 and "19 published rows" in done.stdout and "whole" in done.stdout, done.stderr
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    refused = tokenskip("place", files[0], "--against", "gsm8k", "-o", tmp_path / "other.png")
    assert (
        refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and "nothing is published" in refused.stderr
    )


def test_real_predictions_get_the_figures_that_the_authors_rule_gave_them(data_folder, tmp_path, real_tokenizer):
    source = data_folder / "qwen2.5-7b_gsm8k_chains.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()][:200]
    (tmp_path / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    made = place([str(tmp_path / "chains.jsonl")], AGAINST, str(tmp_path / "mine.png"), tokenizer=name)
    [row] = made.placed.to_dict("records")
    theirs = 100 * sum(row["reference_is_correct"] for row in rows) / len(rows)
    assert row["n"] == len(rows) and row["accuracy"] == pytest.approx(theirs, abs=0.5)
