"""Own chains, from file or pipe: every row scored once, a killed file goes on, bad rows are named."""

import io
import json
import sys
from pathlib import Path

import pytest

from benchmarks.classifiers import write_classifier
from tokenskip_lib.core import store, windows
from tokenskip_lib.core.outputs import lock_path
from tokenskip_lib.core.records import ChainText, InputError, PrunedChain, ScoredChain
from tokenskip_lib.core.store import read_jsonl
from tokenskip_lib.models import loading
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning import controls, own_chains
from tokenskip_lib.pruning.own_rows import read_chains
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.registry import build_scorer


def _with(profile, **sections):
    """A profile with settings of its sections changed."""
    changed = {name: getattr(profile, name).model_copy(update=settings) for name, settings in sections.items()}
    return profile.model_copy(update=changed)


def score_file(source, output, profile) -> None:
    target = TargetModel(profile.target, profile.prompts)
    own_chains.score_file(source, output, target, profile.importance, seed=profile.seed)


def prune_file(source, output, profile) -> None:
    target = TargetModel(profile.target, profile.prompts)
    own_chains.prune_file(source, output, target, profile.importance, profile.pruning, seed=profile.seed)


@pytest.fixture
def rows(problems) -> list[dict]:
    return [
        {"id": p.id, "question": p.question, "answer": p.answer, "chain": p.solution * (1 + index), "model": "x"}
        for index, p in enumerate(problems)
    ]


@pytest.fixture
def source(rows, tmp_path) -> str:
    path = tmp_path / "chains.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 2)


def test_own_chains_are_read_one_by_one_and_other_fields_are_left_alone(source, rows):
    chains = list(read_chains(source))
    assert [c.model_dump() for c in chains] == [
        {name: row[name] for name in ("id", "question", "answer", "chain")} for row in rows
    ]


@pytest.mark.parametrize("scorer", ["selective_context", "mist", "position"])
def test_a_file_holds_what_scorer_and_pruning_give(tiny_profile, source, tmp_path, scorer):
    profile = _with(tiny_profile, importance={"scorer": scorer})
    target = TargetModel(profile.target, profile.prompts)
    chains = list(read_chains(source))
    built = build_scorer(scorer, target, profile.importance, seed=profile.seed)
    expected = [record for start in (0, 2, 4) for record in built.score(chains[start : start + 2])]
    score_file(source, str(tmp_path / "scored.jsonl"), profile)
    assert read_jsonl(tmp_path / "scored.jsonl", ScoredChain) == expected
    prune_file(source, str(tmp_path / "pruned.jsonl"), profile)
    counter = batch_token_counter(target.tokenizer)
    assert read_jsonl(tmp_path / "pruned.jsonl", PrunedChain) == prune_many(
        expected, profile.pruning.ratios, count_tokens=counter
    )


def test_a_killed_file_goes_on_to_the_same_bytes_and_scores_nothing_twice(tiny_profile, source, tmp_path, monkeypatch):
    profile = _with(tiny_profile, importance={"scorer": "random"})
    output = tmp_path / "pruned.jsonl"
    prune_file(source, str(output), profile)
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b'"p3"') + 30])  # torn in the second window
    seen = []
    score = controls.RandomScorer.score
    monkeypatch.setattr(
        controls.RandomScorer, "score", lambda self, window: seen.extend(c.id for c in window) or score(self, window)
    )
    prune_file(source, str(output), profile)
    assert output.read_bytes() == whole and seen == ["p2", "p3", "p4"]


@pytest.mark.parametrize("scorer", ["selective_context", "random"])
def test_a_finished_file_loads_no_model(tiny_profile, source, tmp_path, monkeypatch, capsys, scorer):
    profile = _with(tiny_profile, importance={"scorer": scorer})
    score_file(source, str(tmp_path / "scored.jsonl"), profile)
    prune_file(source, str(tmp_path / "pruned.jsonl"), profile)
    before = [(tmp_path / name).read_bytes() for name in ("scored.jsonl", "pruned.jsonl")]
    capsys.readouterr()

    def refuse(*arguments, **options):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr(loading, "load_model", refuse)
    monkeypatch.setattr(loading, "load_tokenizer", refuse)
    score_file(source, str(tmp_path / "scored.jsonl"), profile)
    prune_file(source, str(tmp_path / "pruned.jsonl"), profile)
    assert before == [(tmp_path / name).read_bytes() for name in ("scored.jsonl", "pruned.jsonl")]
    assert capsys.readouterr().err.splitlines() == [f"{scorer}: all 5 chains were done before"] * 2


def test_a_finished_file_with_a_bad_row_behind_it_says_so(tiny_profile, source, tmp_path):
    profile = _with(tiny_profile, importance={"scorer": "random"})
    score_file(source, str(tmp_path / "scored.jsonl"), profile)
    with Path(source).open("a") as file:
        file.write('{"id": "q"}\n')
    with pytest.raises(InputError, match=r"chains\.jsonl:6: no 'chain'"):
        score_file(source, str(tmp_path / "scored.jsonl"), profile)


def test_an_unknown_scorer_writes_nothing(tiny_profile, source, tmp_path):
    for write in (score_file, prune_file):
        with pytest.raises(InputError, match="did you mean 'random'"):
            write(source, str(tmp_path / "out.jsonl"), _with(tiny_profile, importance={"scorer": "randon"}))
    assert not list(tmp_path.glob("out*"))


def test_a_file_made_with_other_settings_is_not_gone_on_with(tiny_profile, source, tmp_path):
    output = tmp_path / "pruned.jsonl"
    prune_file(source, str(output), _with(tiny_profile, importance={"scorer": "random"}))
    before = output.read_bytes()
    other = _with(tiny_profile, importance={"scorer": "random"}, pruning={"keep_digits": True})
    with pytest.raises(InputError, match="made with other settings"):
        prune_file(source, str(output), other)
    note = tmp_path / "pruned.jsonl.settings.json"
    for broken in ("{", "{}", None):
        note.unlink() if broken is None else note.write_text(broken)
        with pytest.raises(InputError, match="not known how this file was made; write to another"):
            prune_file(source, str(output), other)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("importance", "alpha", 0.1),
        ("importance", "classifier_revision", "0" * 40),
        ("target", "revision", "0" * 40),
        ("target", "attention", "eager"),
    ],
)
def test_every_setting_that_a_score_depends_on_is_compared(tiny_profile, source, tmp_path, section, name, value):
    output = str(tmp_path / "scored.jsonl")
    profile = _with(tiny_profile, importance={"scorer": "position"})
    score_file(source, output, profile)
    with pytest.raises(InputError, match=rf"made with other settings \({section}\.{name}\)"):
        score_file(source, output, _with(profile, **{section: {name: value}}))


def test_a_shared_threshold_is_not_gone_on_with_when_the_file_has_grown(tiny_profile, source, rows, tmp_path):
    output = str(tmp_path / "pruned.jsonl")
    profile = _with(tiny_profile, importance={"scorer": "position"}, pruning={"mode": "threshold"})
    prune_file(source, output, profile)
    prune_file(source, output, profile)
    with Path(source).open("a") as file:
        file.write(json.dumps({**rows[0], "id": "late"}) + "\n")
    with pytest.raises(InputError, match="the whole source, in mode threshold"):
        prune_file(source, output, profile)
    for missing in (str(tmp_path / "none.jsonl"), str(tmp_path)):
        with pytest.raises(InputError, match=r"no such file|a folder"):
            prune_file(missing, str(tmp_path / "other.jsonl"), profile)


def test_what_changes_nothing_of_the_records_is_no_other_setting(tiny_profile, source, tmp_path):
    output = tmp_path / "pruned.jsonl"
    prune_file(source, str(output), _with(tiny_profile, importance={"scorer": "random"}))
    few = output.read_bytes()
    more = {"scorer": "random", "batch_tokens": 7, "compare_with": []}
    prune_file(source, str(output), _with(tiny_profile, importance=more, pruning={"ratios": [0.3, 0.5]}))
    assert output.read_bytes().startswith(few) and len(read_jsonl(output, PrunedChain)) == 5 * 4


def test_a_file_made_from_other_chains_is_not_gone_on_with_but_one_that_grew_is(tiny_profile, source, rows, tmp_path):
    profile = _with(tiny_profile, importance={"scorer": "random"})
    output = tmp_path / "scored.jsonl"
    score_file(source, str(output), profile)
    text = Path(source).read_text()
    Path(source).write_text(text + json.dumps({"id": "new", "chain": "3 + 4 = 7"}) + "\n")
    score_file(source, str(output), profile)
    assert [chain.id for chain in read_jsonl(output, ScoredChain)] == [*(row["id"] for row in rows), "new"]
    Path(source).write_text(text.replace("3 + 4", "4 + 3"))
    with pytest.raises(InputError, match="made from something else than"):
        score_file(source, str(output), profile)


def test_an_output_that_is_the_input_or_a_folder_or_out_of_reach_is_refused(tiny_profile, source, tmp_path):
    profile = _with(tiny_profile, importance={"scorer": "random"})
    before = Path(source).read_bytes()
    with pytest.raises(InputError, match="the input itself; write to another file"):
        score_file(source, source, profile)
    with pytest.raises(InputError, match="a folder"):
        score_file(source, str(tmp_path), profile)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        score_file(source, str(tmp_path / "file" / "out.jsonl"), profile)
    assert Path(source).read_bytes() == before


def test_an_output_that_another_process_writes_or_that_has_no_room_is_refused(
    tiny_profile, source, tmp_path, written_by_another
):
    profile = _with(tiny_profile, importance={"scorer": "random"})
    output = tmp_path / "scored.jsonl"
    with written_by_another(output, lock_path(output)) as pid, pytest.raises(InputError, match=f"process {pid} on "):
        score_file(source, str(output), profile)
    with pytest.raises(InputError, match=r"^/dev/full: cannot be written \(No space left on device\)$"):
        score_file(source, "/dev/full", profile)
    score_file(source, str(output), profile)
    assert not lock_path(output).exists()


@pytest.mark.parametrize("rows", ["", "\n", '{"id": "a", "output": "<think></think>7"}\n'])
def test_a_file_or_pipe_without_chains_is_named_and_leaves_nothing_behind(tiny_profile, tmp_path, monkeypatch, rows):
    (tmp_path / "empty.jsonl").write_text(rows)
    before = set(tmp_path.iterdir())
    profile = _with(tiny_profile, importance={"scorer": "random"}, prompts={"layout": "think"})
    for write in (score_file, prune_file):
        for source in (str(tmp_path / "empty.jsonl"), "-"):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
            with pytest.raises(InputError, match="no chains in it"):
                write(source, str(tmp_path / "o.jsonl"), profile)
    assert set(tmp_path.iterdir()) == before


def test_whole_outputs_are_scored_by_their_chain_and_pruned_within_their_tags(
    tiny_profile, problems, tmp_path, capsys, monkeypatch
):
    tail, source = "\n</think>\n\nIt is \\boxed{7}.", tmp_path / "outputs.jsonl"
    outputs = {p.id: f"<think>\n{p.solution}{tail}" for p in problems}
    rows = [{"id": name, "output": output} for name, output in outputs.items()]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "cut", "output": "<think>\nHe has 3"}]))
    profile = _with(tiny_profile, importance={"scorer": "random"}, prompts={"layout": "think"})
    score_file(str(source), str(tmp_path / "scored.jsonl"), profile)
    prune_file(str(source), str(tmp_path / "pruned.jsonl"), profile)
    report = "6 outputs; 1 state no answer, and are used (cut)"
    assert [line for line in capsys.readouterr().err.splitlines() if "output" in line] == [report] * 2
    scored = read_jsonl(tmp_path / "scored.jsonl", ScoredChain)
    assert [chain.text for chain in scored] == [*(p.solution for p in problems), "He has 3"]
    pruned = read_jsonl(tmp_path / "pruned.jsonl", PrunedChain)
    assert len(pruned) == 6 * len(profile.pruning.ratios)
    for record in pruned:
        whole = outputs.get(record.id, "<think>\nHe has 3")
        assert record.output == f"<think>\n{record.text}" + (tail if record.id in outputs else "")
        assert record.ratio < 1 or record.output == whole
    chains = [{"id": p.id, "chain": p.solution} for p in problems]
    plain = tmp_path / "chains.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in chains))
    prune_file(str(plain), str(tmp_path / "plain.jsonl"), profile)
    expected = [record.model_copy(update={"output": None}) for record in pruned if record.id != "cut"]
    assert read_jsonl(tmp_path / "plain.jsonl", PrunedChain) == expected
    whole_file = (tmp_path / "pruned.jsonl").read_bytes()
    (tmp_path / "pruned.jsonl").write_bytes(whole_file[: len(whole_file) // 2])
    prune_file(str(source), str(tmp_path / "pruned.jsonl"), profile)
    assert (tmp_path / "pruned.jsonl").read_bytes() == whole_file
    with pytest.raises(InputError, match="made with other settings"):
        prune_file(str(source), str(tmp_path / "pruned.jsonl"), _with(profile, prompts={"layout": "answer"}))


def test_what_a_scorer_reads_must_be_in_every_row(tiny_profile, source, tmp_path):
    with Path(source).open("a") as file:
        file.write('{"id": "q", "question": "Why?", "answer": null, "chain": "x"}\n')
    with pytest.raises(InputError, match=r"chains\.jsonl:6: no 'answer'"):
        score_file(source, str(tmp_path / "o.jsonl"), _with(tiny_profile, importance={"scorer": "gogi"}))
    assert len(read_jsonl(tmp_path / "o.jsonl", ScoredChain)) == 4  # the windows before it


def test_settings_versions_and_commit_stand_beside_the_file(tiny_profile, source, tmp_path):
    score_file(source, str(tmp_path / "scored.jsonl"), _with(tiny_profile, importance={"scorer": "random"}))
    note = json.loads((tmp_path / "scored.jsonl.settings.json").read_text())
    assert note["settings"]["importance.scorer"] == "random" and "torch" in note["versions"] and "commit" in note


def test_a_pipe_goes_in_and_out(tiny_profile, rows, monkeypatch, capsys):
    stream = io.TextIOWrapper(io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    score_file("-", "-", _with(tiny_profile, importance={"scorer": "random"}))
    out = [ScoredChain.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [chain.id for chain in out] == [row["id"] for row in rows]


def test_what_comes_through_a_pipe_is_not_added_to_a_file_that_is_there(tiny_profile, source, tmp_path, monkeypatch):
    output, profile = tmp_path / "scored.jsonl", _with(tiny_profile, importance={"scorer": "random"})
    score_file(source, str(output), profile)
    before = output.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "p0", "chain": "another 1 + 1 = 2"}\n')))
    with pytest.raises(InputError, match=r"scored\.jsonl: there already.*write to another file"):
        score_file("-", str(output), profile)
    assert output.read_bytes() == before


def test_llmlingua_mode_says_what_it_cut_off(tiny_profile, tmp_path, capsys):
    pytest.importorskip("bpe_openai")
    corpus = ["He has 3 + 4 = 7 apples. The hippopotamus has 12."] * 4
    classifier = write_classifier("bert", tmp_path, corpus, vocabulary=200)
    profile = _with(
        tiny_profile,
        importance={"classifier": str(classifier), "classifier_dtype": "float32"},
        pruning={"mode": "llmlingua"},
    )
    source = tmp_path / "chains.jsonl"
    source.write_text("".join(json.dumps({"id": i, "chain": "He has 3. " * (i + 1)}) + "\n" for i in range(3)))
    prune_file(str(source), str(tmp_path / "out.jsonl"), profile)
    made = read_jsonl(tmp_path / "out.jsonl", PrunedChain)
    assert [(p.id, p.ratio) for p in made] == [(str(i), r) for i in range(3) for r in profile.pruning.ratios]
    assert {p.scorer for p in made} == {"llmlingua"} and all(p.kept is None for p in made)
    assert "cut off" not in capsys.readouterr().err


def test_every_ratio_comes_from_one_scoring(tiny_profile, source, tmp_path, monkeypatch):
    calls = []
    score = controls.RandomScorer.score
    monkeypatch.setattr(controls.RandomScorer, "score", lambda self, w: calls.append(len(w)) or score(self, w))
    prune_file(source, str(tmp_path / "out.jsonl"), _with(tiny_profile, importance={"scorer": "random"}))
    assert calls == [2, 2, 1] and store.PIPE == "-"


def test_chain_texts_may_lack_question_and_answer():
    assert ChainText(id="a", chain="x").question == ""
