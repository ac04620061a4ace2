"""The stages, on a tiny random model: what each refuses, writes, skips, and how a killed one goes on."""

import json

import pandas as pd
import pytest

from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import Chain, InputError, Prediction, Problem, PrunedChain, ScoredChain, SFTRow
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.evaluation.methods import method_ratios, truncation_budget
from tokenskip_lib.evaluation.metrics import METRIC_COLUMNS
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.chains import graded_chain
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.inference import build, engine
from tokenskip_lib.models import loading
from tokenskip_lib.models.loading import load_attached, load_model, load_tokenizer
from tokenskip_lib.models.prompts import answer_tail
from tokenskip_lib.models.tokens import token_counter
from tokenskip_lib.training.rows import draw_ratios


@pytest.fixture
def run(tiny_profile):
    return Run.create(tiny_profile)


@pytest.fixture
def answered(run, problems, chain_of):
    """The run as if a model that can solve the problems had answered: two chains kept, one dropped."""
    run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
    kept = [chain_of(problem) for problem in problems[:2]]
    run.store(steps.CHAINS, Chain).append([*kept, chain_of(problems[2], dropped="wrong")])
    return run


def _tear(path) -> bytes:
    """Keep the first line and half of the second, as a kill in the middle of a write would; the whole is returned."""
    whole = path.read_bytes()
    first, second, *_ = whole.splitlines(keepends=True)
    path.write_bytes(first + second[: len(second) // 2])
    return whole


def test_generating_grades_every_problem_and_says_why_a_chain_is_dropped(run, problems):
    chains = stages.generate(run)
    assert {chain.id for chain in chains} == {"p0", "p1", "p2"}
    count = token_counter(load_tokenizer(run.profile.target))
    for chain in chains:
        # A random model states no answer: it is cut off by its budget, or ends without one.
        assert chain.dropped == ("cut_off" if chain.cut_off else "no_answer") and not chain.is_correct
        assert chain.chain == chain.output.rstrip() and chain.chain_tokens == count(chain.chain)
    assert list(run.store(steps.TRAIN_PROBLEMS, Problem)) == problems[:3]
    noted = run.state["stages"]["generate"]
    assert noted["chains"] == 3 and noted["kept"] + sum(noted["dropped_chains"].values()) == 3


@pytest.mark.parametrize(
    ("output", "cut_off", "dropped"),
    [
        ("3 + 4 = 7.\n\nThe final answer is: $\\boxed{7}$", False, None),
        ("3 + 4 = 8.\n\nThe final answer is: $\\boxed{8}$", False, "wrong"),
        ("3 + 4 = 7.\n\nThe final answer is: $\\boxed{7}$ and", True, "cut_off"),
        ("3 + 4 = 7.", False, "no_answer"),
        ("The final answer is: $\\boxed{7}$", False, "empty"),
        ("3 + 4 = 7. " * 9 + "\n\nThe final answer is: $\\boxed{7}$", False, "too_long"),
    ],
)
def test_a_chain_is_dropped_for_what_is_wrong_with_it(tiny_profile, problems, output, cut_off, dropped):
    generation = engine.Generation(key=("p0",), text=output, tokens=9, cut_off=cut_off, seconds=0.1)

    def chain_within(limit):
        settings = tiny_profile.chains.model_copy(update={"max_chain_tokens": limit})
        profile = tiny_profile.model_copy(update={"chains": settings})
        return graded_chain(problems[0], generation, lambda text: len(text.split()), profile)

    chain = chain_within(20)
    assert chain.dropped == dropped and chain.output == output
    assert chain_within(None).dropped == (None if dropped == "too_long" else dropped)


def test_a_chain_that_states_its_answer_in_the_settings_words_is_kept(tiny_profile, problems):
    text = "3 + 4 = 7.\nDie Antwort ist 7."
    generation = engine.Generation(key=("p0",), text=text, tokens=9, cut_off=False, seconds=0.1)
    prompts = tiny_profile.prompts.model_copy(update={"answer_phrases": ["Die Antwort ist"]})
    for settings, dropped in ((tiny_profile.prompts, "no_answer"), (prompts, None)):
        profile = tiny_profile.model_copy(update={"prompts": settings})
        assert graded_chain(problems[0], generation, len, profile).dropped == dropped


def test_a_killed_generation_goes_on_to_the_same_bytes(run):
    stages.generate(run)
    whole = _tear(run.folder / steps.CHAINS)
    stages.generate(Run.create(run.profile))
    assert (run.folder / steps.CHAINS).read_bytes() == whole


def test_a_finished_generation_loads_no_model(run, monkeypatch):
    before = stages.generate(run)
    monkeypatch.setattr(build, "load_model", lambda *_, **__: pytest.fail("the model was loaded again"))
    assert stages.generate(Run.create(run.profile)) == before


def test_a_training_question_in_the_test_set_stops_the_first_stage(tiny_profile, problems, tmp_path):
    RecordStore(tmp_path / "test.jsonl", Problem).append([problems[0].model_copy(update={"id": "twin"})])
    run = Run.create(tiny_profile)
    with pytest.raises(InputError, match="'twin'"):
        stages.generate(run)
    assert not list(run.folder.glob("01_*"))


def test_a_question_of_the_training_that_is_gone_on_from_stops_the_first_stage(tiny_profile, problems, tmp_path):
    earlier = problems[0].model_copy(
        update={"id": "earlier", "question": "Nine pens are shared by three. How many each?"}
    )
    RecordStore(tmp_path / "before" / steps.TRAIN_PROBLEMS, Problem).append([earlier])
    RecordStore(tmp_path / "test.jsonl", Problem).append([earlier.model_copy(update={"id": "twin"})])
    settings = {"training.start_from": str(tmp_path / "before" / steps.ADAPTER)}
    with pytest.raises(InputError, match="'twin' is also training problem 'earlier'"):
        stages.generate(Run.create(with_overrides(tiny_profile, settings, where="test")))


def test_scoring_scores_the_kept_chains_by_every_scorer(answered):
    scored = stages.score(answered)
    names = [answered.profile.importance.scorer, *answered.profile.importance.compare_with]
    assert len(names) > 3
    assert [(s.id, s.scorer) for s in scored] == [(chain, name) for name in names for chain in ("p0", "p1")]
    whole = _tear(answered.folder / steps.SCORED)
    stages.score(Run.create(answered.profile))
    assert (answered.folder / steps.SCORED).read_bytes() == whole


def test_random_scores_need_no_model(answered, monkeypatch):
    settings = answered.profile.importance.model_copy(update={"scorer": "random", "compare_with": []})
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    scored = stages.score(Run.create(answered.profile.model_copy(update={"importance": settings})))
    assert {s.scorer for s in scored} == {"random"}


def test_finished_scores_and_pruned_chains_load_no_model(answered, monkeypatch):
    scored, rows = stages.score(answered), stages.prune(answered)
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("the model was loaded again"))
    again = Run.create(answered.profile)
    assert stages.score(again) == scored and stages.prune(again) == rows


def test_scoring_refuses_a_run_without_a_kept_chain(run, problems, chain_of):
    with pytest.raises(InputError, match="generate"):
        stages.score(run)
    run.store(steps.CHAINS, Chain).append([chain_of(p, "", dropped="empty") for p in problems[:3]])
    with pytest.raises(InputError, match="every chain was dropped"):
        stages.score(run)
    assert not (run.folder / steps.SCORED).exists()


def test_pruning_writes_every_ratio_and_one_row_a_problem_at_the_drawn_one(answered, problems):
    stages.score(answered)
    rows = stages.prune(answered)
    ratios = answered.profile.pruning.ratios
    pruned = {record.key: record for record in answered.store(steps.PRUNED, PrunedChain)}
    assert set(pruned) == {(name, "selective_context", ratio) for name in ("p0", "p1") for ratio in ratios}
    drawn = draw_ratios(["p0", "p1"], ratios, answered.profile.seed)
    assert {row.id: row.ratio for row in rows} == drawn
    for row in rows:
        answer = {p.id: p.answer for p in problems}[row.id]
        assert row.completion == pruned[(row.id, "selective_context", row.ratio)].text + answer_tail(answer)
    whole = _tear(answered.folder / steps.PRUNED)
    rows_whole = (answered.folder / steps.SFT_ROWS).read_bytes()
    (answered.folder / steps.SFT_ROWS).unlink()
    stages.prune(Run.create(answered.profile))
    assert (answered.folder / steps.PRUNED).read_bytes() == whole
    assert (answered.folder / steps.SFT_ROWS).read_bytes() == rows_whole


def test_rows_are_the_first_so_many_whatever_ratios_a_problem_has(answered):
    stages.score(answered)
    training = answered.profile.training.model_copy(update={"ratios_a_problem": "all", "rows": 4, "seed": 3})
    rows = stages.prune(Run.create(answered.profile.model_copy(update={"training": training})))
    assert [(row.id, row.ratio) for row in rows] == [("p0", 0.5), ("p0", 0.7), ("p0", 1.0), ("p1", 0.5)]


def test_rows_and_compared_chains_are_taken_in_the_problems_order_whatever_the_files(answered):
    chains = list(answered.store(steps.CHAINS, Chain))
    (answered.folder / steps.CHAINS).unlink()
    answered.store(steps.CHAINS, Chain).append(chains[::-1])
    importance = answered.profile.importance.model_copy(update={"compare_with": ["random"], "compare_size": 1})
    training = answered.profile.training.model_copy(update={"ratios_a_problem": "all", "rows": 1})
    run = Run.create(answered.profile.model_copy(update={"importance": importance, "training": training}))
    assert [s.id for s in stages.score(run) if s.scorer == "random"] == ["p0"]
    assert [row.id for row in stages.prune(run)] == ["p0"]


def test_compared_scorers_may_score_fewer_chains_than_the_one_that_is_used(answered):
    importance = answered.profile.importance.model_copy(update={"compare_with": ["random"], "compare_size": 1})
    run = Run.create(answered.profile.model_copy(update={"importance": importance}))
    scored = [(s.id, s.scorer) for s in stages.score(run)]
    assert scored == [("p0", "selective_context"), ("p1", "selective_context"), ("p0", "random")]


def test_pruning_by_a_score_that_was_not_made_says_how_to_make_it(answered):
    stages.score(answered)
    importance = answered.profile.importance.model_copy(update={"scorer": "another"})
    answered.profile = answered.profile.model_copy(update={"importance": importance})
    with pytest.raises(InputError, match=r"another for 0 of 2 kept chains; run `python -m tokenskip_lib score`"):
        stages.prune(answered)


@pytest.mark.parametrize(("rows", "enough"), [(None, False), (4, False), (3, True)])
def test_chains_without_a_score_are_not_left_out_of_training_silently(answered, rows, enough):
    importance = answered.profile.importance.model_copy(update={"compare_with": ["random"], "compare_size": 1})
    answered.profile = answered.profile.model_copy(update={"importance": importance})
    stages.score(answered)
    training = answered.profile.training.model_copy(update={"rows": rows, "ratios_a_problem": "all"})
    update = {"importance": importance.model_copy(update={"scorer": "random"}), "training": training}
    answered.profile = answered.profile.model_copy(update=update)  # three ratios: three rows of one chain
    if enough:
        assert {row.id for row in stages.prune(answered)} == {"p0"}
    else:
        with pytest.raises(InputError, match=r"scores by random for 1 of 2 kept chains.*compare_size"):
            stages.prune(answered)


def test_chains_are_not_scored_before_every_problem_is_answered(answered, problems):
    answered.store(steps.TRAIN_PROBLEMS, Problem).append(problems[3:4])  # as `generate` leaves it when it is killed
    with pytest.raises(InputError, match=r"1 training problems are not answered yet; run .* generate"):
        stages.score(answered)


def test_every_stage_names_the_one_to_run_first(run):
    for stage, needed in (
        (stages.score, "generate"),
        (stages.prune, "score"),
        (stages.train, "prune"),
        (stages.evaluate, "generate"),
    ):
        with pytest.raises(InputError, match=f"tokenskip_lib {needed} --profile smoke"):
            stage(run)
    assert [path.name for path in run.folder.iterdir()] == ["profile.json"]


def test_evaluating_tokenskip_needs_the_adapter(answered):
    with pytest.raises(InputError, match="tokenskip_lib train"):
        stages.evaluate(answered)
    assert not list(answered.folder.glob("05_*"))


def test_from_scores_to_metrics(answered, problems, tmp_path):
    stages.score(answered)
    stages.prune(answered)
    summary = stages.train(answered)
    assert summary["rows_trained"] + summary["rows_held_out"] == len(answered.need(steps.SFT_ROWS, SFTRow, "prune"))
    metrics = stages.evaluate(answered)

    pairs = method_ratios(answered.profile.evaluation)
    predictions = list(answered.store(steps.PREDICTIONS, Prediction))
    assert {p.key for p in predictions} == {(t.id, m, r) for t in problems[3:] for m, r in pairs}
    assert list(metrics.columns) == METRIC_COLUMNS and set(metrics["n"]) == {2}
    assert sorted(zip(metrics["method"], metrics["ratio"], strict=True)) == sorted(pairs)
    spent = [p.chain_tokens for p in predictions if p.method == "original"]
    budgets = {p.max_new_tokens for p in predictions if p.method == "truncation"}
    assert budgets == {truncation_budget(spent, 0.5)}
    assert {p.max_new_tokens for p in predictions if p.method != "truncation"} == {8}
    written = pd.read_csv(tmp_path / "run" / "results" / "metrics.csv", keep_default_na=False)
    assert list(written["method"]) == list(metrics["method"])

    # A tear in the file costs time, not content.
    before = [p.model_dump(exclude={"seconds"}) for p in predictions]
    _tear(answered.folder / steps.PREDICTIONS)
    stages.evaluate(Run.create(answered.profile))
    after = RecordStore(answered.folder / steps.PREDICTIONS, Prediction)
    assert [p.model_dump(exclude={"seconds"}) for p in after] == before
    state = json.loads((answered.folder / "profile.json").read_text())["stages"]
    assert set(state) == {"score", "prune", "train", "evaluate"}


def test_scores_on_disk_are_of_the_chains_text(answered, problems):
    stages.score(answered)
    on_disk = RecordStore(answered.folder / steps.SCORED, ScoredChain)
    assert {(s.id, s.text) for s in on_disk} == {(p.id, p.solution) for p in problems[:2]}


def test_a_published_adapter_is_evaluated_without_a_training_run_and_under_the_references_budget(
    tiny_profile, make_adapter
):
    settings = tiny_profile.evaluation.model_copy(
        update={
            "adapter": str(make_adapter(0)),
            "budget": "scaled",
            "methods": {"original": [], "tokenskip": [0.5, 1.0]},
        }
    )
    run = Run.create(tiny_profile.model_copy(update={"evaluation": settings}))
    stages.evaluate(run)
    budgets = {(p.method, p.ratio): p.max_new_tokens for p in run.store(steps.PREDICTIONS, Prediction)}
    assert budgets == {("original", 1.0): 8, ("tokenskip", 0.5): 4, ("tokenskip", 1.0): 8}


def test_an_attached_adapter_answers_as_a_merged_one_in_one_pass_over_the_problems(
    tiny_profile, make_adapter, tmp_path, monkeypatch
):
    methods = {"original": [], "tokenskip": [0.5, 1.0], "truncation": [0.5]}
    shared = {"adapter": str(make_adapter(0)), "methods": methods}
    loaded, answers = [], {}
    for name, load in (("load_model", load_model), ("load_attached", load_attached)):
        monkeypatch.setattr(build, name, lambda *a, _load=load, **kw: loaded.append(kw) or _load(*a, **kw))
    for attach in (False, True):
        settings = tiny_profile.evaluation.model_copy(update={**shared, "attach": attach})
        folder = str(tmp_path / f"run_{attach}")
        run = Run.create(tiny_profile.model_copy(update={"evaluation": settings, "run_dir": folder}))
        stages.evaluate(run)
        answers[attach] = {p.key: p.output for p in run.store(steps.PREDICTIONS, Prediction)}
    assert answers[True] == answers[False]
    assert len(loaded) == 3  # two models where it is merged, one where it is attached


def test_a_thinking_model_trains_on_its_pruned_thinking_and_its_own_words_after_it(tiny_profile, problems, chain_of):
    prompts = tiny_profile.prompts.model_copy(update={"layout": "think"})
    training = tiny_profile.training.model_copy(update={"ratios_a_problem": "all"})
    run = Run.create(tiny_profile.model_copy(update={"prompts": prompts, "training": training}))
    run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:2])
    tail = "\n</think>\n\nAll in all it is"
    chains = [
        chain_of(p).model_copy(update={"output": f"<think>\n{p.solution}{tail} \\boxed{{{p.answer}}}."})
        for p in problems[:2]
    ]
    run.store(steps.CHAINS, Chain).append(chains)
    stages.score(run)
    assert stages.prune(run) == list(run.store(steps.SFT_ROWS, SFTRow))
    rows = run.need(steps.SFT_ROWS, SFTRow, "prune")
    assert [(row.id, row.ratio) for row in rows] == [
        (p.id, r) for p in problems[:2] for r in run.profile.pruning.ratios
    ]
    texts = {p.key: p.text for p in run.store(steps.PRUNED, PrunedChain)}
    for row, gold in zip(rows, [p.answer for p in problems[:2] for _ in run.profile.pruning.ratios], strict=True):
        chain = texts[row.id, run.profile.pruned_by, row.ratio]
        assert row.completion == f"<think>\n{chain}{tail} \\boxed{{{gold}}}."


def test_with_more_chains_all_rows_are_drawn_anew_and_never_beside_the_old_ones(answered, problems, chain_of):
    stages.score(answered)
    stages.prune(answered)
    late = chain_of(problems[3])
    answered.store(steps.TRAIN_PROBLEMS, Problem).append([problems[3]])
    answered.store(steps.CHAINS, Chain).append([late])
    stages.score(answered)
    rows = stages.prune(answered)
    assert list(answered.store(steps.SFT_ROWS, SFTRow)) == rows and len({row.id for row in rows}) == len(rows) == 3
    (answered.folder / steps.ADAPTER).mkdir()
    assert stages.prune(answered) == rows
    answered.store(steps.TRAIN_PROBLEMS, Problem).append([problems[4]])
    answered.store(steps.CHAINS, Chain).append([chain_of(problems[4])])
    stages.score(answered)
    with pytest.raises(
        InputError, match=r"the adapter was trained on these rows, and they would be others now.*--from 03"
    ):
        stages.prune(answered)
    assert list(answered.store(steps.SFT_ROWS, SFTRow)) == rows


def test_a_threshold_that_chains_share_is_not_kept_when_there_are_more_chains(tiny_profile, problems, chain_of):
    pruning = tiny_profile.pruning.model_copy(update={"mode": "threshold"})
    run = Run.create(tiny_profile.model_copy(update={"pruning": pruning}))
    run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
    run.store(steps.CHAINS, Chain).append([chain_of(problem) for problem in problems[:3]])
    stages.score(run)
    rows = stages.prune(run)
    assert stages.prune(run) == rows
    path, lost = run.folder / steps.PRUNED, problems[2].id  # as if this chain had ended its worker each time
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if lost not in line))
    run.note("prune", chains_left_out={lost: "its worker died"})
    assert {row.id for row in stages.prune(run)} == {problem.id for problem in problems[:2]}
    run.store(steps.TRAIN_PROBLEMS, Problem).append([problems[3]])
    run.store(steps.CHAINS, Chain).append([chain_of(problems[3])])
    stages.score(run)
    with pytest.raises(InputError, match=r"share a threshold.*--from 03"):
        stages.prune(run)
