"""Studies, on a tiny random model: each variant is a run that shares what its overrides leave as it is."""

import json

import pandas as pd
import pytest

from tokenskip_lib.core import records
from tokenskip_lib.core.profiles import Profile, load_profile, with_overrides
from tokenskip_lib.core.records import Chain, InputError, Prediction, Problem
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.evaluation import predictions
from tokenskip_lib.evaluation.metrics import METRIC_COLUMNS
from tokenskip_lib.experiments import evaluate, stages, steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.studies import check_studies, other_seeds, run_study, variant_profiles

METHODS = {"original": [], "tokenskip": [0.5]}


@pytest.fixture
def with_study(tiny_profile, problems, chain_of, tmp_path):
    """A function variants, common -> a run with that study, whose first stage is done as if the model could answer."""
    chosen_by = problems[4].model_copy(update={"id": "p5", "question": "Three pens cost $5 each. What do they cost?"})
    RecordStore(tmp_path / "validation.jsonl", Problem).append([chosen_by])

    def make(*vary: dict, **common) -> Run:
        fixed = {"evaluation.methods": METHODS, "problems.validation": str(tmp_path / "validation.jsonl"), **common}
        run = Run.create(
            with_overrides(tiny_profile, {"studies": {"mine": {"common": fixed, "vary": list(vary)}}}, where="t")
        )
        if not (run.folder / steps.CHAINS).exists():
            run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
            run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:3])
        return run

    return make


def test_every_variant_has_its_rows_with_what_was_varied(with_study, tmp_path):
    run = with_study({"training.rows": 1}, {"training.rows": 2, "prompts.marker": "words"})
    table = run_study(run, "mine")
    first = ["training.rows", "rows_trained", "training_seconds"]
    assert set(table.columns) == {*first, "prompts.marker", *METRIC_COLUMNS}
    assert list(table["method"]) == ["original", "tokenskip"] * 2
    assert list(table["training.rows"]) == list(table["rows_trained"]) == [1, 1, 2, 2]
    assert list(table["prompts.marker"]) == ["eos", "eos", "words", "words"]
    written = pd.read_csv(tmp_path / "run" / "results" / "mine.csv", keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(written, table)


def test_variants_share_the_records_before_the_first_stage_that_differs(with_study):
    run = with_study({"importance.scorer": "random"}, {"evaluation.max_new_tokens": 6})
    run_study(run, "mine")
    by_scorer, by_budget = (Run.create(profile).folder for _, profile in variant_profiles(run.profile, "mine"))
    linked = {folder: {p.name for p in folder.iterdir() if p.is_symlink()} for folder in (by_scorer, by_budget)}
    assert linked[by_scorer] == {steps.TRAIN_PROBLEMS, steps.CHAINS, steps.SCORED}
    assert linked[by_budget] == linked[by_scorer] | {steps.PRUNED, steps.SFT_ROWS, steps.ADAPTER}
    assert {c.scorer for c in RecordStore(by_scorer / steps.PRUNED, records.PrunedChain)} == {"random"}


def test_a_runs_folder_may_be_moved_with_its_variants(with_study):
    run = with_study({"evaluation.max_new_tokens": 6})
    before = run_study(run, "mine")
    run.folder.rename(run.folder.with_name("elsewhere"))
    moved = Run.create(with_overrides(run.profile, {"run_dir": str(run.folder.with_name("elsewhere"))}, where="t"))
    pd.testing.assert_frame_equal(run_study(moved, "mine"), before)


def test_a_variant_may_change_nothing_and_has_the_runs_own_adapter(with_study, tmp_path):
    run = with_study({"training.rows": 1}, {})
    run_study(run, "mine")
    unchanged = Run.create(variant_profiles(run.profile, "mine")[1][1]).folder
    assert unchanged.name.startswith("unchanged") and (unchanged / steps.ADAPTER).is_symlink()
    written = pd.read_csv(tmp_path / "run" / "results" / "mine.csv", dtype=str, keep_default_na=False)
    assert list(written["training.rows"]) == ["1", "1", "", ""]  # not 1.0
    assert list(written["rows_trained"]) == ["1", "1", "3", "3"]


def test_a_study_that_is_done_is_not_done_again(with_study, monkeypatch):
    run = with_study({"training.rows": 1}, {"training.rows": 2})
    before = run_study(run, "mine")
    monkeypatch.setattr(stages, "train_adapter", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(evaluate, "predict_all", lambda *_, **__: pytest.fail("answered again"))
    pd.testing.assert_frame_equal(run_study(Run.create(run.profile), "mine"), before)


def test_answers_without_the_adapter_are_given_once(with_study, monkeypatch):
    asked, answer = [], predictions.predict_all

    def counting(engine, tokenizer, problems, prompts, plan, **options):
        asked.extend(method for method, *_ in plan)
        return answer(engine, tokenizer, problems, prompts, plan, **options)

    monkeypatch.setattr(evaluate, "predict_all", counting)
    run_study(with_study({"training.rows": 1}, {"training.rows": 2}, {"evaluation.max_new_tokens": 6}), "mine")
    assert asked == ["original", "tokenskip", "tokenskip", "original", "tokenskip"]


def test_what_the_run_itself_answered_without_the_adapter_is_not_asked_again(with_study, monkeypatch):
    methods = {"original": [], "lc_prompt": [0.5]}
    run = with_study({"training.rows": 1}, **{"evaluation.methods": methods, "problems.validation": None})
    for stage in (stages.score, stages.prune, stages.train, stages.evaluate):
        stage(run)
    asked, answer = [], predictions.predict_all

    def counting(engine, tokenizer, problems, prompts, plan, **options):
        asked.extend(plan)
        return answer(engine, tokenizer, problems, prompts, plan, **options)

    monkeypatch.setattr(evaluate, "predict_all", counting)
    table = run_study(run, "mine")
    assert not asked and list(table["method"]) == ["original", "lc_prompt"]  # of all that the run was asked


def test_the_validation_problems_can_judge_in_place_of_the_test_problems(with_study):
    run = with_study({"training.rows": 1}, **{"evaluation.split": "validation"})
    run_study(run, "mine")
    [(_, profile)] = variant_profiles(run.profile, "mine")
    assert {p.id for p in Run.create(profile).store(steps.PREDICTIONS, Prediction)} == {"p5"}


def test_other_test_problems_are_one_setting(with_study, problems, tmp_path):
    elsewhere = problems[0].model_copy(
        update={"id": "far", "question": "A train goes 3 km in 2 minutes. How far in 6?"}
    )
    RecordStore(tmp_path / "elsewhere.jsonl", Problem).append([elsewhere])
    run = with_study({"problems.test": str(tmp_path / "elsewhere.jsonl")})
    table = run_study(run, "mine")
    [(_, profile)] = variant_profiles(run.profile, "mine")
    assert {p.id for p in Run.create(profile).store(steps.PREDICTIONS, Prediction)} == {"far"}
    assert (Run.create(profile).folder / steps.ADAPTER).is_symlink() and list(table["n"]) == [1, 1]


def test_another_seed_is_another_training_on_the_same_problems(with_study):
    run = with_study({"training.seed": 1}, {"training.seed": 2}, {"training.seed": 1, "training.log_every": 1})
    run_study(run, "mine")
    folders = [Run.create(profile).folder for _, profile in variant_profiles(run.profile, "mine")]
    one, other, again = ((folder / steps.ADAPTER / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == again != other


def test_redoing_a_stage_of_the_run_removes_the_variants_made_from_it(with_study):
    run = with_study({"training.rows": 1}, {"evaluation.max_new_tokens": 6})
    run_study(run, "mine")
    rows, budget = (profile.path("") for _, profile in variant_profiles(run.profile, "mine"))
    Run.create(run.profile, redo_from=5)
    assert (rows / steps.ADAPTER).exists() and (budget / steps.ADAPTER).exists()
    assert not (rows / steps.PREDICTIONS).exists() and not (budget / steps.PREDICTIONS).exists()
    Run.create(run.profile, redo_from=3)
    assert not list(rows.glob("0[3-5]*")) and (rows / steps.SCORED).exists() and not budget.exists()
    Run.create(run.profile, redo_from=2)
    assert not rows.exists()


def test_redoing_the_studies_keeps_the_run(with_study):
    run = with_study({"training.rows": 1})
    run_study(run, "mine")
    Run.create(run.profile, redo_from=6)
    assert not list(run.folder.glob("studies/*/*")) and (run.folder / steps.SCORED).exists()


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        ({"training.row": 3}, "did you mean 'rows'"),
        ({"training.rows": -3}, "study 'mine'"),
        ({"importance.scorer": "ctss"}, "did you mean 'cts'"),
    ],
)
def test_a_wrong_variant_is_refused_before_anything_runs(with_study, varied, message):
    with pytest.raises(InputError, match=message):
        check_studies(with_study({"training.rows": 1}, varied).profile)


@pytest.mark.parametrize(
    ("study", "varied", "message"),
    [
        ("mine", {"description": "another"}, "changes no stage"),
        ("metrics", {"training.rows": 1}, "written over"),
    ],
)
def test_a_study_that_could_not_mean_what_it_says_is_refused(tiny_profile, study, varied, message):
    studies = {study: {"vary": [varied]}}
    with pytest.raises(InputError, match=message):
        check_studies(with_overrides(tiny_profile, {"studies": studies}, where="t"))


def test_a_variant_that_trains_answers_by_its_own_adapter(with_study):
    run = with_study({"training.rows": 1}, {"evaluation.max_new_tokens": 6})
    profile = with_overrides(run.profile, {"evaluation.adapter": "somebody/adapter"}, where="t")
    adapters = [variant.evaluation.adapter for _, variant in variant_profiles(profile, "mine")]
    assert adapters == [None, "somebody/adapter"]


def test_redoing_a_stage_with_other_settings_redoes_it_in_the_variants(with_study):
    run = with_study({"training.rows": 1})
    run_study(run, "mine")
    other = with_overrides(run.profile, {"training.rank": 3}, where="t")
    run_study(Run.create(other, redo_from=3), "mine")
    [(_, variant)] = variant_profiles(other, "mine")
    assert json.loads((variant.path(steps.ADAPTER) / "adapter_config.json").read_text())["r"] == 3


def test_validation_problems_that_are_test_problems_are_refused(with_study, tmp_path):
    run = with_study({"training.rows": 1}, **{"evaluation.split": "validation"})
    (tmp_path / "validation.jsonl").write_text((tmp_path / "test.jsonl").read_text())
    with pytest.raises(InputError, match="test problem 'p3' is also"):
        run_study(run, "mine")


def test_an_unknown_study_is_refused_with_the_nearest_name(with_study):
    with pytest.raises(InputError, match="did you mean 'mine'"):
        run_study(with_study({"training.rows": 1}), "mines")


@pytest.mark.parametrize("name", ["smoke", "demo-full"])
def test_the_profiles_studies_are_settings_and_never_look_at_the_test_split_to_choose(name):
    profile: Profile = load_profile(name)
    check_studies(profile)
    for study in ("scorers", "control"):
        for _, variant in variant_profiles(profile, study):
            assert variant.evaluation.split == "validation"
    kept = {variant.pruning.keep_digits for _, variant in variant_profiles(profile, "scorers")}
    assert kept == {True, False}


def test_other_seeds_are_the_variants_that_change_nothing_else(tiny_profile):
    seeds = [{"training.seed": 0}, {"training.seed": 3}]
    studies = {
        "seeds": {"common": {"evaluation.methods": METHODS}, "vary": seeds},
        "shorter": {"common": {"training.rows": 1}, "vary": seeds},
        "methods": {"common": {}, "vary": [{"evaluation.methods": METHODS}]},
        "never": {"common": {}, "vary": seeds},  # was not run
    }
    run = Run.create(with_overrides(tiny_profile, {"studies": studies}, where="t"))
    assert other_seeds(run).empty
    answered = [("original", 0), ("tokenskip", 0), ("original", 3), ("tokenskip", 3)]
    table = pd.DataFrame(answered, columns=["method", "training.seed"]).assign(accuracy=[0.9, 0.8, 0.9, 0.7])
    for name in ("seeds", "shorter"):
        run.write_result(table, f"{name}.csv")
    run.write_result(table.drop(columns="training.seed"), "methods.csv")
    others = other_seeds(run)
    assert others[["label", "accuracy"]].to_numpy().tolist() == [["tokenskip, seed 3", 0.7]]
