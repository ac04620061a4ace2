"""Run folders: other settings are refused by name, redoing a stage removes it and what follows."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tokenskip_lib.core.paths import relative
from tokenskip_lib.core.processes import LOCK
from tokenskip_lib.core.profiles import is_how, load_profile, setting_values
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.experiments import folder as folder_module
from tokenskip_lib.experiments import run as run_module
from tokenskip_lib.experiments.evaluate import evaluate
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import STAGE_OF, STAGES, stage_number, stage_of
from tokenskip_lib.experiments.studies import run_study

STAGE_FILES = [
    "01_train_problems.jsonl",
    "01_chains.jsonl",
    "02_scored.jsonl",
    "03_pruned.jsonl",
    "03_sft_rows.jsonl",
    "04_adapter/summary.json",
    "05_predictions.jsonl",
]
# One change for every entry of STAGE_OF: (dotted name, value).
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
    "training.ratios_a_problem": ("training.ratios_a_problem", "all"),
    "training.rows": ("training.rows", 7),
    "training.seed": ("training.seed", 7),
    "training.held_out": ("training.held_out", 0.5),
    "server.model": ("server", ServerSettings(url="http://127.0.0.1:1/v1", model="other")),
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


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state: [], "expected an object, found list"),
        (lambda state: None, "expected an object, found NoneType"),
        (lambda state: {}, "not the whole state of a run"),
        (lambda state: {**state, "profile": []}, "not the whole state of a run"),
        (lambda state: {**state, "profile": None}, "not the whole state of a run"),
        (lambda state: {**state, "stages": []}, "not the whole state of a run"),
        (lambda state: {**state, "stages": {"generate": 5}}, "not the whole state of a run"),
        (lambda state: {name: value for name, value in state.items() if name != "commit"}, "not the whole state"),
    ],
)
def test_a_damaged_state_is_refused_by_every_way_into_the_run_and_kept(finished, tiny_profile, damage, says):
    file, files = finished.folder / "profile.json", _files(finished)
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    damaged = file.read_bytes()
    for way in (Run.create, Run.open, lambda profile: Run.create(profile, redo_from=1)):
        with pytest.raises(InputError) as caught:
            way(tiny_profile)
        assert str(caught.value).startswith(f"{file}: {says}") and "put the file back" in str(caught.value)
    assert file.read_bytes() == damaged and _files(finished) == files


def test_a_state_that_is_no_text_of_ours_and_a_folder_in_its_place_are_refused(finished, tiny_profile):
    file = finished.folder / "profile.json"
    whole = file.read_bytes()
    for content, says in (
        (whole.decode().encode("utf-16"), "not UTF-8"),
        (whole[:100], "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"profile\.json: {says}"):
            Run.open(tiny_profile)
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"profile\.json: a folder"):
        Run.create(tiny_profile)


def test_a_file_where_the_runs_folder_belongs_is_refused(tiny_profile):
    tiny_profile.path("").write_text("mine")
    with pytest.raises(InputError, match="no folder; choose another"):
        Run.create(tiny_profile)
    assert tiny_profile.path("").read_text() == "mine"


@pytest.mark.parametrize("section", sorted(CHANGES))
def test_another_value_is_refused_with_the_settings_name_and_the_stage_to_redo(finished, tiny_profile, section):
    files = _files(finished)
    with pytest.raises(InputError) as caught:
        Run.create(_changed(tiny_profile, *CHANGES[section]))
    message = str(caught.value)
    assert section in message and f"--from {STAGE_OF[section]:02}" in message and "\n" not in message
    assert _files(finished) == files
    assert json.loads((finished.folder / "profile.json").read_text())["profile"] == tiny_profile.model_dump(mode="json")


@pytest.mark.parametrize("section", sorted(CHANGES))
def test_other_settings_are_taken_where_their_stage_is_redone(finished, tiny_profile, section):
    changed, stage = _changed(tiny_profile, *CHANGES[section]), STAGE_OF[section]
    if stage < len(STAGES):
        with pytest.raises(InputError, match=section):
            Run.create(changed, redo_from=stage + 1)
    Run.create(changed, redo_from=stage)
    assert json.loads((finished.folder / "profile.json").read_text())["profile"] == changed.model_dump(mode="json")
    Run.create(changed)


def test_settings_of_stages_that_have_not_begun_may_change(tiny_profile):
    run = Run.create(tiny_profile)
    (run.folder / "01_chains.jsonl").write_text("{}\n")
    Run.create(_changed(tiny_profile, *CHANGES["importance"]))
    with pytest.raises(InputError, match=r"chains\.max_new_tokens"):
        Run.create(_changed(tiny_profile, *CHANGES["chains"]))


def test_the_held_out_share_is_part_of_the_rows_that_stage_3_wrote(finished, tiny_profile):
    # Rows say whether they are held out: with another share they have to be made again, from stage 03.
    changed = _changed(tiny_profile, "training.held_out", 0.5)
    with pytest.raises(InputError, match="--from 03"):
        Run.create(changed)
    with pytest.raises(InputError, match="--from 03"):
        Run.create(changed, redo_from=4)


def test_what_a_run_is_called_is_no_reason_to_redo_it(finished, tiny_profile):
    Run.create(tiny_profile.model_copy(update={"description": "another"}))


def test_every_setting_says_what_it_changes(tiny_profile):
    # A new setting has to say what it changes: a stage (STAGE_OF), or how the work is done (HOW).
    places = {"name", "description", "run_dir", "studies", "target_training.rows", "target_training.training"}
    undecided = [key for key in setting_values(tiny_profile) if stage_of(key) is None and not is_how(key)]
    assert set(undecided) == places
    assert {*CHANGES, "server.tokenskip_model"} == set(STAGE_OF)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target.batch_tokens", 4096),
        ("target.cache_dir", "/elsewhere"),
        ("importance.batch_tokens", 99),
        ("training.save_every", 7),
        ("training.checkpointing", True),
    ],
)
def test_how_the_work_is_done_never_asks_for_a_stage_to_be_redone(finished, tiny_profile, key, value):
    Run.create(_changed(tiny_profile, key, value))


def _served(profile, **settings):
    """The profile with a server's answers."""
    server = {"url": "http://127.0.0.1:1/v1", "model": "A", **settings}
    return profile.model_copy(update={"server": ServerSettings(**server)})


@pytest.mark.parametrize("other", [{"model": "B"}, None])
def test_what_answered_cannot_change_under_chains_that_are_there(tiny_profile, other):
    run = Run.create(_served(tiny_profile))
    (run.folder / "01_chains.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"server\.model .*--from 01"):
        Run.create(tiny_profile if other is None else _served(tiny_profile, **other))


def test_the_adapter_that_answered_cannot_change_under_its_predictions(tiny_profile):
    run = Run.create(_served(tiny_profile))
    (run.folder / "05_predictions.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"server\.tokenskip_model .*--from 05"):
        Run.create(_served(tiny_profile, tokenskip_model="other"))


def test_where_the_same_server_is_and_how_it_is_asked_may_change(tiny_profile):
    run = Run.create(_served(tiny_profile))
    for name in ("01_chains.jsonl", "05_predictions.jsonl"):
        (run.folder / name).write_text("{}\n")
    how = {"url": "http://127.0.0.1:2/v1", "concurrency": 2, "retries": 0, "timeout": 5, "api_key_variable": "KEY"}
    Run.create(_served(tiny_profile, **how))


def test_opening_a_run_to_read_it_writes_nothing(finished, tiny_profile, monkeypatch):
    monkeypatch.setattr(run_module, "commit", lambda: "another")
    monkeypatch.setattr(run_module, "write_json", lambda *_: pytest.fail("written"))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.folder.rglob("*")}
    opened = Run.open(tiny_profile)
    assert opened.state == finished.state and list(opened.timings()) == list(STAGES)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.folder.rglob("*")} == before


def test_a_run_that_is_not_there_is_not_opened(tiny_profile):
    with pytest.raises(InputError, match="no run here"):
        Run.open(tiny_profile)
    assert not tiny_profile.path("").exists()


def test_a_run_of_an_earlier_version_goes_on(finished, tiny_profile):
    state = json.loads((finished.folder / "profile.json").read_text())
    state["profile"] |= {"figures_dir": "figures", "results_dir": "data/results"}
    (finished.folder / "profile.json").write_text(json.dumps(state))
    Run.create(tiny_profile)
    with pytest.raises(InputError, match="seed"):
        Run.create(_changed(tiny_profile, "seed", 99))


def test_a_result_is_the_runs_own_or_else_the_published_one(tmp_path, root):
    run = Run.create(load_profile("demo", {"run_dir": str(tmp_path / "run"), "target.batch_tokens": 4096}))
    assert run.find_result("metrics.csv") == root / "data" / "results" / "demo_metrics.csv"
    run.write_result(pd.DataFrame({"a": [1]}), "metrics.csv")
    assert run.find_result("metrics.csv") == run.folder / "results" / "metrics.csv"
    with pytest.raises(InputError, match="not published"):
        run.find_result("nothing.csv")


def test_a_published_result_is_not_shown_for_a_run_with_other_settings(tmp_path):
    run = Run.create(load_profile("demo", {"run_dir": str(tmp_path / "run"), "training.epochs": 2}))
    with pytest.raises(InputError, match=r"was made with another 'training\.epochs'"):
        run.find_result("metrics.csv")


def test_a_run_in_a_read_only_folder_can_be_read_and_plotted(finished, tiny_profile, modes_count):
    finished.write_result(pd.DataFrame({"a": [1]}), "metrics.csv")
    finished.folder.chmod(0o555)
    try:
        run = Run.open(tiny_profile)
        assert list(run.timings()) == list(STAGES) and run.has_begun()
        assert pd.read_csv(run.find_result("metrics.csv"))["a"].tolist() == [1]
        figure, axes = plt.subplots()
        axes.plot([1, 2], [3, 4])
        for write in (
            lambda: Run.create(tiny_profile),
            lambda: run.note("train", steps=1),
            lambda: run.save_figure(figure, "loss", run.find_result("metrics.csv"), n=1, alt="A figure."),
        ):
            with pytest.raises(InputError, match=r"^[^\n]*cannot be written \(Permission denied\)$"):
                write()
    finally:
        finished.folder.chmod(0o755)


def test_a_run_that_another_process_writes_is_read_and_not_written(finished, tiny_profile, written_by_another):
    before = (finished.folder / "profile.json").read_text()
    with written_by_another(finished.folder, finished.folder / LOCK) as pid:
        assert list(Run.open(tiny_profile).timings()) == list(STAGES)
        for write in (
            lambda: Run.create(tiny_profile),
            lambda: finished.note("train", steps=1),
            lambda: evaluate(finished),
            lambda: run_study(finished, "none"),
        ):
            with pytest.raises(InputError, match=rf"^[^\n]*process {pid} on \S+ has been writing here since [^\n]*$"):
                write()
    assert (finished.folder / "profile.json").read_text() == before
    Run.create(tiny_profile)  # the other process was killed
    assert not (finished.folder / LOCK).exists()


def test_of_two_that_begin_a_run_with_other_settings_the_earlier_writes_no_more(tiny_profile):
    run = Run.create(tiny_profile)
    Run.create(_changed(tiny_profile, "seed", 99))
    with pytest.raises(InputError, match="another process has made this run anew, with another 'seed'"):
        run.note("generate", chains=3)


def test_what_a_process_leaves_that_was_killed_before_the_first_state_is_no_run_of_someone_else(tiny_profile):
    folder = tiny_profile.path("")
    folder.mkdir()
    (folder / LOCK).write_text("")
    (folder / "profile.json.1a.partial").write_text("{")
    assert Run.create(tiny_profile).folder == folder


def test_a_name_that_is_too_long_is_one_line(tiny_profile, tmp_path):
    long = tiny_profile.model_copy(update={"run_dir": str(tmp_path / ("x" * 256))})
    for use in (Run.create, Run.open):
        with pytest.raises(InputError, match=r"^[^\n]*\(File name too long\)$"):
            use(long)


def test_a_table_starts_no_formula_in_a_spreadsheet(tiny_profile):
    table = pd.DataFrame({"method": ["=cmd()", " +1", "mine", None], "difference": [-1, 2, 3, 4]})
    path = Run.create(tiny_profile).write_result(table, "mine.csv")
    assert path.read_text() == "method,difference\n'=cmd(),-1\n' +1,2\nmine,3\n,4\n"


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
    delete = folder_module._delete

    def killed(paths):
        delete(paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "_delete", killed)
    with pytest.raises(KeyboardInterrupt):
        Run.create(_changed(tiny_profile, "training.rank", 3), redo_from=3)
    state = json.loads((finished.folder / "profile.json").read_text())
    assert list(state["stages"]) == list(STAGES[:2]) and state["profile"] == finished.state["profile"]


@pytest.mark.parametrize(
    ("state", "says"), [(None, r"has files \(01_mine\.ipynb[^\n]*no run made it"), ("null", "expected an object")]
)
@pytest.mark.parametrize("redo_from", [None, 1])
def test_a_folder_with_files_that_no_run_made_is_left_alone(tiny_profile, redo_from, state, says):
    folder = tiny_profile.path("")
    folder.mkdir()
    (folder / "01_mine.ipynb").write_text("mine")
    if state is not None:
        (folder / "profile.json").write_text(state)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(InputError, match=rf"^[^\n]*{says}[^\n]*run_dir=[^\n]*$"):
        Run.create(tiny_profile, redo_from=redo_from)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_redoing_leaves_a_file_of_someone_else_in_a_runs_folder(finished, tiny_profile):
    (finished.folder / "01_mine.ipynb").write_text("mine")
    run = Run.create(tiny_profile, redo_from=1)
    assert (run.folder / "01_mine.ipynb").read_text() == "mine" and not (run.folder / "01_chains.jsonl").exists()


def test_the_target_models_adapter_may_be_there_before_the_run(tiny_profile):
    inside = tiny_profile.path("adapters/target")
    inside.mkdir(parents=True)
    target = tiny_profile.target.model_copy(update={"adapter": str(inside)})
    assert Run.create(tiny_profile.model_copy(update={"target": target})).folder == tiny_profile.path("")


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
    with pytest.raises(InputError, match=r"problems\.test_size .*--from 05"):
        Run.create(tiny_profile)


def test_settings_that_are_newer_than_the_run_are_no_other_settings(tiny_profile):
    run = Run.create(tiny_profile)
    (run.folder / "01_chains.jsonl").write_text("")
    state = json.loads((run.folder / "profile.json").read_text())
    del state["profile"]["target"]["compile"], state["profile"]["prompts"]["layout"]
    (run.folder / "profile.json").write_text(json.dumps(state))
    Run.create(tiny_profile)


def test_more_scorers_to_compare_with_make_nothing_stale(finished, tiny_profile):
    more = _changed(tiny_profile, "importance.compare_with", [*tiny_profile.importance.compare_with, "position"])
    more = _changed(more, "importance.compare_size", 1)
    assert _files(Run.create(more)) == _files(finished)
    assert json.loads((finished.folder / "profile.json").read_text())["profile"] == more.model_dump(mode="json")
