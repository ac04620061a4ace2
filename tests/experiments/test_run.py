"""Run folders: other settings are refused by name, redoing a stage removes it and what follows."""

import json

import pytest

from tokenskip_lib.core.paths import relative
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.experiments import run as run_module
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import STAGE_OF_SECTION, STAGES, stage_number

STAGE_FILES = [
    "01_train_problems.jsonl",
    "01_chains.jsonl",
    "02_scored.jsonl",
    "03_pruned.jsonl",
    "03_sft_rows.jsonl",
    "04_adapter/summary.json",
    "05_predictions.jsonl",
]
# One change a section, or field of its own stage: (section, dotted key, value).
CHANGES = {
    "seed": ("seed", 99),
    "target": ("target.model", "another/model"),
    "prompts": ("prompts.system", "Be brief."),
    "problems": ("problems.train_size", 1),
    "problems.test": ("problems.test", "other.jsonl"),
    "problems.test_size": ("problems.test_size", 1),
    "chains": ("chains.max_new_tokens", 9),
    "importance": ("importance.scorer", "random"),
    "pruning": ("pruning.ratios", [0.5, 1.0]),
    "training": ("training.epochs", 7),
    "evaluation": ("evaluation.max_new_tokens", 9),
    "prompts.baseline_place": ("prompts.baseline_place", "question"),
    "prompts.marker": ("prompts.marker", "words"),
    "problems.validation": ("problems.validation", "other.jsonl"),
    "problems.validation_size": ("problems.validation_size", 7),
}


@pytest.fixture
def finished(tiny_profile):
    """A run whose folder has a file of every stage."""
    run = Run.create(tiny_profile)
    for name in STAGE_FILES:
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text("{}\n")
    for stage in STAGES:
        run.note(stage, notebook_seconds=1.0)
    return run


def _changed(profile, key: str, value):
    section, _, field = key.partition(".")
    if field:
        value = getattr(profile, section).model_copy(update={field: value})
    return profile.model_copy(update={section: value})


def _counts(run) -> dict[str, dict]:
    """What the stages noted, without which code did."""
    return {
        stage: {name: value for name, value in noted.items() if name != "finished_by"}
        for stage, noted in run.state["stages"].items()
    }


def _files(run) -> list[str]:
    return sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("0*") if p.is_file()) + sorted(
        str(p.relative_to(run.folder)) for p in run.folder.glob("04_*/*")
    )


def test_opening_a_run_writes_what_it_was_made_with(tiny_profile):
    run = Run.create(tiny_profile)
    state = json.loads((run.folder / "profile.json").read_text())
    assert set(state) >= {"profile", "seed", "versions", "commit", "stages"}
    assert state["profile"] == tiny_profile.model_dump(mode="json") and state["seed"] == tiny_profile.seed
    assert {"python", "tokenskip", "torch", "transformers", "peft", "reasoning-gym"} <= set(state["versions"])
    assert all(state["versions"].values()) and state["stages"] == {}
    assert not list(run.folder.glob("*.partial"))


def test_the_same_settings_open_again_and_keep_their_notes(tiny_profile):
    run = Run.create(tiny_profile)
    run.note("generate", chains=3)
    run.note("generate", notebook_seconds=2.5)
    run.note("score", chains=2)
    again = Run.create(tiny_profile)
    assert _counts(again) == {"generate": {"chains": 3, "notebook_seconds": 2.5}, "score": {"chains": 2}}
    assert again.timings() == {"generate": 2.5}


def test_a_note_keeps_what_another_process_wrote_meanwhile(tiny_profile):
    one, other = Run.create(tiny_profile), Run.create(tiny_profile)
    one.note("generate", chains=3)
    other.note("score", chains=2)
    assert _counts(Run.create(tiny_profile)) == {"generate": {"chains": 3}, "score": {"chains": 2}}


def test_a_stage_names_the_code_that_finished_it_whoever_reads_it_later(tiny_profile, monkeypatch):
    monkeypatch.setattr(run_module, "commit", lambda: "early")
    Run.create(tiny_profile).note("generate", chains=3)
    monkeypatch.setattr(run_module, "commit", lambda: "late")
    reader = Run.create(tiny_profile)
    reader.note("generate", accuracy=0.5)
    reader.note("score", chains=3)
    assert [reader.state["stages"][stage]["finished_by"]["commit"] for stage in ("generate", "score")] == [
        "early",
        "late",
    ]
    assert reader.state["stages"]["score"]["finished_by"]["versions"] == reader.state["versions"]


@pytest.mark.parametrize("section", sorted(STAGE_OF_SECTION))
def test_other_settings_are_refused_with_their_section_and_the_stage_to_redo(finished, tiny_profile, section):
    files = _files(finished)
    with pytest.raises(InputError) as caught:
        Run.create(_changed(tiny_profile, *CHANGES[section]))
    message = str(caught.value)
    assert f"'{section}'" in message and f"--from {STAGE_OF_SECTION[section]:02}" in message and "\n" not in message
    assert _files(finished) == files
    assert json.loads((finished.folder / "profile.json").read_text())["profile"] == tiny_profile.model_dump(mode="json")


@pytest.mark.parametrize("section", sorted(STAGE_OF_SECTION))
def test_other_settings_are_taken_where_their_stage_is_redone(finished, tiny_profile, section):
    changed, stage = _changed(tiny_profile, *CHANGES[section]), STAGE_OF_SECTION[section]
    if stage < len(STAGES):
        with pytest.raises(InputError, match=f"'{section}'"):
            Run.create(changed, redo_from=stage + 1)
    Run.create(changed, redo_from=stage)
    assert json.loads((finished.folder / "profile.json").read_text())["profile"] == changed.model_dump(mode="json")
    Run.create(changed)


def test_settings_of_stages_that_have_not_begun_may_change(tiny_profile):
    run = Run.create(tiny_profile)
    (run.folder / "01_chains.jsonl").write_text("{}\n")
    Run.create(_changed(tiny_profile, *CHANGES["importance"]))
    with pytest.raises(InputError, match="'chains'"):
        Run.create(_changed(tiny_profile, *CHANGES["chains"]))


def test_the_held_out_share_is_part_of_the_rows_that_stage_3_wrote(finished, tiny_profile):
    # Rows say whether they are held out: with another share they have to be made again, from stage 03.
    changed = _changed(tiny_profile, "training.held_out", 0.5)
    with pytest.raises(InputError, match="--from 03"):
        Run.create(changed)
    with pytest.raises(InputError, match="--from 03"):
        Run.create(changed, redo_from=4)


def test_where_a_run_writes_its_figures_is_no_reason_to_redo_it(finished, tiny_profile, tmp_path):
    Run.create(tiny_profile.model_copy(update={"figures_dir": str(tmp_path / "other"), "description": "another"}))


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_redoing_a_stage_removes_its_files_and_later_ones_only(finished, tiny_profile, stage):
    (finished.folder / "metrics.csv").write_text("kept")
    run = Run.create(tiny_profile, redo_from=stage)
    left = [name for name in STAGE_FILES if (run.folder / name).exists()]
    assert left == [name for name in STAGE_FILES if int(name[:2]) < stage]
    assert list(run.timings()) == list(STAGES[: stage - 1])
    assert list(run.folder.glob(f"{stage:02}_*")) == []


def test_a_run_that_is_killed_while_files_are_removed_does_not_say_that_they_are_done(
    finished, tiny_profile, monkeypatch
):
    remove = Run._remove

    def killed(self, number):
        remove(self, number)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        Run.create(_changed(tiny_profile, "training.rank", 3), redo_from=3)
    state = json.loads((finished.folder / "profile.json").read_text())
    assert list(state["stages"]) == list(STAGES[:2]) and state["profile"] == finished.state["profile"]


def test_a_stage_whose_input_is_missing_names_the_stage_to_run_first(tiny_profile):
    run = Run.create(tiny_profile)
    with pytest.raises(InputError, match="tokenskip_lib generate --profile smoke"):
        run.need("01_chains.jsonl", Problem, "generate")
    assert not (run.folder / "01_chains.jsonl").exists()


def test_a_damaged_profile_json_is_refused_by_name(finished, tiny_profile):
    (finished.folder / "profile.json").write_text('{"profile": ')
    with pytest.raises(InputError, match=r"profile\.json"):
        Run.create(tiny_profile)


@pytest.mark.parametrize(
    ("text", "number"), [("03", 3), ("3", 3), ("prune", 3), ("03_pruning", 3), ("generate", 1), ("5", 5)]
)
def test_a_stage_is_named_by_number_or_name(text, number):
    assert stage_number(text) == number


@pytest.mark.parametrize("text", ["0", "00", "8", "12", "-1", "", "pruning"])
def test_a_stage_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="no stage"):
        stage_number(text)


def test_paths_are_told_relative_to_the_root_where_they_lie_below_it(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root)
    assert relative(root / "data" / "runs") == "data/runs"
    assert relative(tmp_path) == str(tmp_path)


def test_another_test_set_concerns_the_evaluation_alone(tiny_profile):
    run = Run.create(tiny_profile)
    (run.folder / "01_chains.jsonl").write_text("")
    smaller = tiny_profile.model_copy(update={"problems": tiny_profile.problems.model_copy(update={"test_size": 1})})
    Run.create(smaller)
    (run.folder / "05_predictions.jsonl").write_text("")
    with pytest.raises(InputError, match=r"'problems.test_size' setting.*--from 05"):
        Run.create(tiny_profile)


def test_settings_that_are_newer_than_the_run_are_no_other_settings(tiny_profile):
    run = Run.create(tiny_profile)
    (run.folder / "01_chains.jsonl").write_text("")
    state = json.loads((run.folder / "profile.json").read_text())
    del state["profile"]["target"]["compile"], state["profile"]["prompts"]["layout"]
    (run.folder / "profile.json").write_text(json.dumps(state))
    Run.create(tiny_profile)
