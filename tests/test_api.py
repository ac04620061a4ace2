"""The five functions: what they take, that they give what the command line gives, and how results are shown."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import tokenskip_lib as ts
from tokenskip_lib.core.records import ChainText, InputError, Problem, PrunedChain, ScoredChain
from tokenskip_lib.core.settings import ImportanceSettings, PromptSettings, PruningSettings
from tokenskip_lib.core.store import read_jsonl
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.pruning.registry import build_pruner, build_scorer
from tokenskip_lib.training.lora import train_adapter as real_train_adapter

QUICK = {"epochs": 1, "rank": 2, "alpha": 4, "accumulation": 1, "learning_rate": 0.01}


@pytest.fixture
def model(tiny_target) -> TargetModel:
    return ts.load(tiny_target, device="cpu", dtype="float32")


@pytest.fixture
def chains(problems) -> list[dict]:
    return [{"id": p.id, "question": p.question, "answer": p.answer, "chain": p.solution} for p in problems]


@pytest.fixture
def pruned(chains, model) -> ts.PrunedChains:
    scored = ts.score(chains, model, scorer="position")
    return ts.prune(scored, ratios=[0.9, 0.5], model=model)


def test_importing_the_package_loads_none_of_its_parts(root):
    code = "import sys; before = set(sys.modules); import tokenskip_lib; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if "tokenskip" in name] == ["tokenskip_lib"]
    assert not {"torch", "pandas", "pydantic", "numpy", "yaml"} & set(done.stdout.split())


def test_every_public_name_is_there_and_listed():
    assert {"load", "score", "prune", "train", "generate", "InputError", "register_scorer"} <= set(ts.__all__)
    assert all(getattr(ts, name) is not None for name in ts.__all__)
    assert set(ts.__all__) <= set(dir(ts)) and set(ts.__all__) == set(ts._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ts.nothing


def test_the_example_runs_on_every_step(chains, model, tmp_path):
    scored = ts.score(chains, model, scorer="selective_context")
    pruned = ts.prune(scored, ratios=[0.9, 0.7, 0.5], model=model)
    adapter = ts.train(pruned, model, tmp_path / "out", **QUICK)
    answers = ts.generate(["What is 3 + 4?"], model, adapter=adapter, ratio=0.5, max_new_tokens=8)
    assert [chain.id for chain in scored] == [row["id"] for row in chains]
    assert [(p.id, p.ratio) for p in pruned[:3]] == [("p0", 0.5), ("p0", 0.7), ("p0", 0.9)]
    assert adapter.summary["rows_trained"] + adapter.summary["rows_held_out"] == len(chains)
    [answer] = answers
    assert (answer.ratio, answer.method, answer.is_correct) == (0.5, "tokenskip", None)


def test_the_examples_of_the_docs_run_as_written(root, model, tmp_path, monkeypatch):
    example, data, *others = [
        block.partition("```")[0] for block in (root / "docs/api.md").read_text().split("```python\n")[1:]
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ts, "load", lambda name: model)  # the tiny model, whatever the page names
    shown: dict = {}
    for block in (data, example, *others):
        exec(block, shown)
    assert [len(shown[name]) for name in ("scored", "pruned", "answers", "table", "half")] == [4, 12, 2, 2, 4]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_chains_may_be_texts_dicts_rows_or_records(problems, model):
    import pandas as pd

    texts = [p.solution for p in problems]
    frame = pd.DataFrame({"id": range(5), "chain": texts, "question": [None, *(p.question for p in problems[1:])]})
    records = [ChainText(id=p.id, chain=p.solution) for p in problems]
    given = [texts, [{"chain": text} for text in texts], frame, list(frame.itertuples(index=False)), records]
    scored = [ts.score(chains, model, scorer="position") for chains in given]
    assert all([chain.text for chain in result] == texts for result in scored)
    assert [chain.id for chain in scored[0]] == [chain.id for chain in scored[2]] == ["0", "1", "2", "3", "4"]
    assert scored[2].chains["0"].question == "" and scored[2].chains["1"].question == problems[1].question
    assert ts.score([row for _, row in frame.iterrows()], model, scorer="position")[0].id == "0"
    assert len(ts.score(texts[0], model, scorer="random")) == 1
    assert [chain.text for chain in ts.score(texts, model, scorer="selective_context")] == texts


def test_one_row_of_a_table_is_one_chain(model, chains):
    table = pd.DataFrame(chains)
    for row in (table.iloc[0], next(table.itertuples()), next(table.itertuples(index=False)), chains[0]):
        [scored] = ts.score(row, model, scorer="position")
        assert scored.text == chains[0]["chain"]
    assert [chain.text for chain in ts.score(table["chain"], model, scorer="position")] == list(table["chain"])
    asked = pd.DataFrame({"problem": ["9 x 2?"], "answer": [18.0]})
    assert len(ts.generate(asked.iloc[0], model, max_new_tokens=2)) == 1


def test_a_gold_answer_that_pandas_made_a_float_stays_a_whole_number(model, chains):
    table = pd.DataFrame(chains).assign(answer=[float("nan"), *range(1, len(chains))]).dropna()
    scored = ts.score(table, model, scorer="position")
    assert [chain.answer for chain in scored.chains.values()] == [str(n) for n in range(1, len(chains))]


def test_ratios_of_numpy_are_ratios(pruned, model):
    asked = np.array([0.7, 0.5], dtype=np.float32)
    assert {chain.ratio for chain in ts.prune(pruned.scored, model=model, ratios=asked)} == {0.5, 0.7}
    assert {chain.ratio for chain in ts.prune(pruned.scored, model=model, ratios=asked[1])} == {0.5}


@pytest.mark.parametrize(
    ("chains", "scorer", "says"),
    [
        (["so 7", "  "], "position", r"chains\[1\]: chain '1' is empty"),
        ([{"text": "so 7"}], "position", r"chains\[0\]: no 'chain'"),
        ([{"id": "a", "chain": "x"}, {"id": "a", "chain": "y"}], "position", "id 'a' was there before"),
        ([7], "position", r"chains\[0\]: a text, a dict"),
        (7, "position", "chains: a list"),
        ([{"chain": "so 7"}], "selective_context", r"chains\[0\]: no 'question'"),
        (["so 7"], "gogi", r"chains\[0\]: no 'question'"),
        (["so 7"], "positon", "did you mean 'position'"),
        (["so 7"], "nowhere_to_be:found", "nowhere_to_be"),
    ],
)
def test_what_is_wrong_with_chains_is_said_with_its_place(model, chains, scorer, says):
    with pytest.raises(InputError, match=says):
        ts.score(chains, model, scorer=scorer)


def test_a_scorer_may_be_a_function(problems, model):
    def longest(chains):
        return [[end - start for start, end in ts.segment(chain.chain)] for chain in chains]

    [scored] = ts.score(problems[0].solution, model, scorer=longest)
    assert scored.scorer == "longest" and max(scored.importance) == len("apples")


def test_score_and_prune_give_what_the_command_line_gives(chains, model, tiny_target, tmp_path, root):
    source, out = tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in chains))
    settings = ["target.device=cpu", "target.dtype=float32", "pruning.keep_digits=true"]
    command = [sys.executable, "-m", "tokenskip_lib", "prune", str(source), "--model", str(tiny_target)]
    command += ["--scorer", "cts", "--ratios", "0.9,0.5", "-o", str(out)]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    pruned = ts.prune(ts.score(chains, model, scorer="cts"), ratios=[0.9, 0.5], model=model, keep_digits=True)
    assert list(pruned) == read_jsonl(out, PrunedChain)


def test_whole_outputs_are_pruned_as_on_the_command_line_and_trained_on_with_their_tails(
    problems, tiny_target, tmp_path, tokenskip, monkeypatch
):
    from tokenskip_lib.training import lora

    tails = {p.id: f"\n</think>\n\nIt is \\boxed{{{p.answer}}}." for p in problems}
    rows = [
        {"id": p.id, "question": p.question, "answer": p.answer, "output": f"<think>\n{p.solution}{tails[p.id]}"}
        for p in problems
    ]
    source, out = tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["prune", source, "--model", tiny_target, "--scorer", "position", "--ratios", "0.5", "-o", out]
    done = tokenskip(*command, "--layout", "think")
    assert done.returncode == 0 and "5 outputs\n" in done.stderr, done.stderr
    model = ts.load(tiny_target, device="cpu", dtype="float32", prompts=PromptSettings(layout="think"))
    pruned = ts.prune(ts.score(rows, model, scorer="position"), ratios=0.5, model=model)
    assert list(pruned) == read_jsonl(out, PrunedChain) and "output" in pruned.to_pandas()
    trained = []
    monkeypatch.setattr(lora, "train_adapter", lambda model, tokenizer, rows, *args, **options: trained.extend(rows))
    ts.train(pruned, model, tmp_path / "out", **QUICK)
    assert [row.completion for row in trained] == [f"<think>\n{p.text}{tails[p.id]}" for p in pruned]
    whole = ts.prune(
        ts.score(
            [{**row, "chain": p.solution} for row, p in zip(rows, problems, strict=True)], model, scorer="position"
        ),
        ratios=0.5,
        model=model,
    )
    with pytest.raises(InputError, match=r"chain 'p0': prompts\.layout 'think' needs what followed it"):
        ts.train(whole, model, tmp_path / "other", **QUICK)


def test_prune_offers_every_option_of_a_profile(chains, model):
    import inspect

    options = inspect.signature(ts.prune).parameters
    assert set(options) == {"scored", "model", "ratios", "keep"}  # keep: every field of KeepSettings
    assert list(options["ratios"].default) == PruningSettings().ratios  # as on the command line
    scored = ts.score(chains, model, scorer="random", seed=3)
    keep = {"keep_tokens": ["He"], "keep_digits": True, "keep_operators": True, "skip_spaces": True}
    settings = PruningSettings(ratios=[0.5], **keep, drop_consecutive=True)
    expected = build_pruner(model, settings, ImportanceSettings())(
        build_scorer("random", model, ImportanceSettings(), seed=3).score(list(scored.chains.values()))
    )
    assert list(ts.prune(scored, ratios=0.5, model=model, drop_consecutive=True, **keep)) == expected


def test_nothing_to_work_on_is_refused_as_on_the_command_line(chains, model):
    import pandas as pd

    for nothing in ([], (), pd.DataFrame({"chain": []})):
        with pytest.raises(InputError, match="chains: there are none"):
            ts.score(nothing, model)
        with pytest.raises(InputError, match="questions: there are none"):
            ts.generate(nothing, model)
    scored = ts.score(chains, model, scorer="position")
    for empty in ([], scored[:0]):
        with pytest.raises(InputError, match="there are no chains"):
            ts.prune(empty, model=model)


@pytest.mark.parametrize(("ratios", "says"), [([0.5, 1.5], "ratio 1.5"), ([], "no ratio"), (0, "above 0")])
def test_a_ratio_outside_its_range_is_refused(chains, model, ratios, says):
    with pytest.raises(InputError, match=says):
        ts.prune(ts.score(chains, model, scorer="position"), ratios=ratios, model=model)


def test_two_scores_of_one_chain_are_refused(model):
    scored = [ScoredChain(id="a", scorer=s, text="x y", spans=[(0, 1), (2, 3)], importance=[1, 0]) for s in "st"]
    with pytest.raises(InputError, match="two of them have one id"):
        ts.prune(scored, model=model)


def test_results_show_as_tables_whose_texts_are_escaped(model):
    evil = "<script>alert(1)</script> costs $5 and $6"
    chains = [{"id": "<b>", "chain": evil}, *(f"chain {number}" for number in range(1, 15))]
    scored = ts.score(chains, model, scorer="position")
    pruned = ts.prune(scored, ratios=[0.5], model=model)
    for shown in (scored._repr_html_(), pruned._repr_html_()):
        assert "<script>" not in shown and "<b>" not in shown and "mathjax_ignore" in shown
        assert "&lt;b&gt;" in shown and "and 5 more" in shown
    assert "line-through" in pruned._repr_html_() or "<s>" in pruned._repr_html_() or "<del>" in pruned._repr_html_()
    assert len(scored) == 15 and len(scored[2:4]) == 2 and isinstance(scored[2:4], ts.ScoredChains)
    assert repr(pruned) == "PrunedChains of 15: <b>, 1, 2, ..."


def test_results_become_data_frames(pruned):
    frame = pruned.to_pandas()
    assert list(frame["actual_ratio"]) == [chain.actual_ratio for chain in pruned]
    assert {"id", "scorer", "ratio", "text", "kept", "tokens", "original_tokens"} <= set(frame.columns)
    assert list(pruned.scored.to_pandas()["text"]) == [chain.text for chain in pruned.scored]


def test_a_part_of_the_pruned_chains_still_knows_their_questions(pruned, model, tmp_path):
    adapter = ts.train(pruned[:4], model, tmp_path / "out", held_out=0, ratios_a_problem="all", **QUICK)
    assert adapter.summary["rows_trained"] == 4


def test_training_says_what_it_lacks(problems, model, tmp_path):
    pruned = ts.prune(ts.score([p.solution for p in problems], model, scorer="position"), ratios=[0.5], model=model)
    with pytest.raises(InputError, match="chain '0' has no question or no answer"):
        ts.train(pruned, model, tmp_path / "out")
    with pytest.raises(InputError, match=r"unknown setting 'epoch' .did you mean 'epochs'"):
        ts.train(pruned, model, tmp_path / "out", epoch=1)
    assert not (tmp_path / "out").exists()


def test_a_training_is_not_repeated_and_never_mixed_with_another(pruned, model, tmp_path, monkeypatch):
    adapter = ts.train(pruned, model, tmp_path / "out", **QUICK)
    weights = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert os.fspath(adapter) == str(tmp_path / "out") and "train_loss" in repr(adapter)
    assert "rows_trained" in adapter._repr_html_()
    from tokenskip_lib.training import lora

    monkeypatch.setattr(lora, "train_adapter", None)
    assert ts.train(pruned, model, tmp_path / "out", save_every=7, **QUICK) == adapter
    with pytest.raises(InputError, match="another 'seed'"):
        ts.train(pruned, model, tmp_path / "out", seed=1, **QUICK)
    with pytest.raises(InputError, match="another 'rows_sha256'"):
        ts.train(pruned[2:], model, tmp_path / "out", **QUICK)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == weights


def test_a_training_that_never_began_leaves_its_folder_to_another(pruned, model, tmp_path):
    with pytest.raises(InputError, match="no training rows"):
        ts.train(pruned, model, tmp_path / "out", max_tokens=5, **QUICK)
    assert ts.train(pruned, model, tmp_path / "out", **QUICK).summary["steps"] > 0
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(InputError, match="made elsewhere"):
        ts.train(pruned, model, tmp_path / "out", **QUICK)


def test_a_killed_training_goes_on_where_it_stopped(pruned, model, tmp_path, monkeypatch):
    from tokenskip_lib.training import lora

    settings = {**QUICK, "epochs": 4, "save_every": 2, "held_out": 0}
    whole = ts.train(pruned, model, tmp_path / "whole", **settings)

    def killed(*args, **kwargs):
        monkeypatch.setattr(lora.LogWriter, "on_save", _die)
        return real_train_adapter(*args, **kwargs)

    monkeypatch.setattr(lora, "train_adapter", killed)
    with pytest.raises(KeyboardInterrupt):
        ts.train(pruned, model, tmp_path / "out", **settings)
    assert list((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    monkeypatch.undo()
    again = ts.train(pruned, model, tmp_path / "out", **settings)
    assert again.summary["train_loss"] == whole.summary["train_loss"]
    same = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "out")]
    assert same[0] == same[1]


def _die(*args, **kwargs):
    raise KeyboardInterrupt


def test_training_leaves_the_model_as_it_was(pruned, chains, model, tmp_path):
    before = ts.score(chains, model)
    ts.train(pruned, model, tmp_path / "out", **QUICK)
    assert list(ts.score(chains, model)) == list(before)


def test_answers_are_graded_where_the_gold_answer_is_known(model, problems, make_adapter):
    questions = [
        "What is 3 + 4?",
        {"question": "What is 2 * 5?", "answer": 10},
        Problem(id="x", question="q", answer="1"),
    ]
    answers = ts.generate(questions, model, max_new_tokens=4)
    assert [(a.id, a.method, a.ratio, a.gold) for a in answers] == [
        ("0", "original", 1.0, None),
        ("1", "original", 1.0, "10"),
        ("x", "original", 1.0, "1"),
    ]
    assert [a.is_correct for a in answers] == [None, False, False]
    both = ts.generate(questions, model, adapter=make_adapter(1), ratio=[0.5, 1.0], max_new_tokens=4)
    assert [(a.id, a.ratio) for a in both] == [(q, r) for q in ("0", "1", "x") for r in (0.5, 1.0)]
    assert {a.method for a in both} == {"tokenskip"} and list(both.to_pandas()["id"]) == [a.id for a in both]


def test_the_adapter_answers_and_the_model_stays_itself(model, make_adapter):
    plain = ts.generate("What is 3 + 4?", model, max_new_tokens=8)
    other = ts.generate("What is 3 + 4?", model, adapter=make_adapter(1), max_new_tokens=8)
    assert plain[0].text != other[0].text
    assert ts.generate("What is 3 + 4?", model, max_new_tokens=8)[0].text == plain[0].text


def test_other_methods_answer_by_name(model):
    answers = ts.generate("What is 3 + 4?", model, method="lc_prompt", ratio=[0.5, 0.9], max_new_tokens=2)
    assert [(a.method, a.ratio) for a in answers] == [("lc_prompt", 0.5), ("lc_prompt", 0.9)]


@pytest.mark.parametrize(
    ("questions", "options", "says"),
    [
        ([""], {}, r"questions\[0\]: no question"),
        ([{"id": 1, "question": "a"}, {"id": 1, "question": "b"}], {}, "id '1'"),
        (["q"], {"ratio": 0.5}, "method 'original' takes no ratio"),
        (["q"], {"method": "tokenskip"}, "'tokenskip' needs an adapter"),
        (["q"], {"method": "be_concise", "adapter": "x"}, "'be_concise' takes no adapter"),
        (["q"], {"method": "truncation", "ratio": 0.5}, "needs the original's answers"),
        (["q"], {"method": "tale_ep"}, "'tale_ep' needs two calls"),
        (["q"], {"method": "adapter_scaling", "adapter": "x"}, "'adapter_scaling' needs .*strengths of the adapter"),
        (["q"], {"method": "be_consise"}, "did you mean 'be_concise'"),
        (["q"], {"ratio": 2}, "above 0 and at most 1"),
        (["q"], {"ratio": 0.5, "adapter": "nowhere_to_be/found at all"}, "no adapter"),
    ],
)
def test_what_is_wrong_with_questions_is_said(model, questions, options, says):
    with pytest.raises(InputError, match=says):
        ts.generate(questions, model, **options)


def test_load_takes_a_profile_a_folder_or_a_name(tiny_target, make_adapter, tmp_path, monkeypatch):
    folder = make_adapter(0)
    profile = tmp_path / "own.yaml"
    profile.write_text(
        f"description: x\ntarget: {{model: {tiny_target}, adapter: {folder}}}\nprompts: {{system: ''}}\n"
        "problems: {train: gsm8k, test: gsm8k}\nevaluation: {methods: {original: []}}\n"
    )
    model = ts.load(profile, device="cpu")
    assert (model.settings.adapter, model.settings.device, model.prompts.system) == (str(folder), "cpu", "")
    monkeypatch.chdir(tiny_target.parent)
    assert ts.load(tiny_target.name).settings.model == str(tiny_target)
    assert ts.load(tiny_target, prompts=PromptSettings(system="s")).prompts.system == "s"


@pytest.mark.parametrize(
    ("source", "settings", "says"),
    [
        ("nobody/nothing", {}, "nobody/nothing"),
        (None, {"adapter": "/nowhere"}, "no adapter here"),
        (None, {"devise": "cpu"}, "unknown setting 'devise' .did you mean 'device'"),
        (None, {"dtype": "int3"}, "dtype"),
    ],
)
def test_load_refuses_what_is_not_there_at_once(tiny_target, monkeypatch, source, settings, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=says):
        ts.load(source or tiny_target, **settings)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_digit": True}, "did you mean 'keep_digits'"),
        ({"ratios": 50}, "prune: ratio 50; .* above 0 and at most 1"),
        ({"ratios": []}, "no ratio"),
    ],
)
def test_wrong_settings_of_pruning_are_one_line(model, options, says):
    scored = ts.score(["3 + 4 = 7"], model, scorer="position")
    with pytest.raises(InputError, match=says):
        ts.prune(scored, model=model, **options)


def test_chains_without_scores_are_not_pruned(model):
    with pytest.raises(InputError, match="what `score` returned"):
        ts.prune([{"id": "a", "chain": "3 + 4 = 7"}], ratios=0.5, model=model)


def test_a_method_of_your_own_is_asked_as_an_object(model, own_methods):
    brief = ts.Method("brief", prompt="Answer in one line.")
    [answer] = ts.generate(["What is 3 + 4?"], model, method=brief, max_new_tokens=4)
    [named] = ts.generate(["What is 3 + 4?"], model, method="brief", max_new_tokens=4)
    assert answer.text == named.text


def test_a_model_says_what_it_is(model):
    assert repr(model).startswith("TargetModel(") and "CPU" in repr(model)


def test_training_goes_on_from_what_train_returned(pruned, model, tmp_path, monkeypatch):
    for name in ("notebooks", "tokenskip_lib"):  # as in a checkout, where a setting's path begins at the root
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    first = ts.train(pruned[:4], model, "first", held_out=0, **QUICK)
    folder = tmp_path / "notebooks" / "first"
    for start in (first, folder, "first"):
        further = tmp_path / f"on-{type(start).__name__}"
        ts.train(pruned[:4], model, further, held_out=0, start_from=start, **QUICK)
        assert json.loads((further / "settings.json").read_text())["start_from"] == str(folder)


def test_a_classifiers_folder_is_relative_to_the_working_directory(chains, model, tmp_path, monkeypatch):
    for name in ("notebooks/classifier", "tokenskip_lib"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(InputError, match="notebooks/classifier"):  # there, and not a classifier
        ts.score(chains, model, scorer="llmlingua2", classifier="classifier")
