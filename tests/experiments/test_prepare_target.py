"""Preparing a target model, on a tiny random one: what is written, and when to refuse to go on."""

import json

import pytest

from tokenskip_lib.core.profiles import Profile, with_overrides
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.experiments import prepare_target as module
from tokenskip_lib.experiments.prepare_target import prepare_target

TRAINING = {"rank": 2, "alpha": 4, "epochs": 1, "batch_size": 2, "accumulation": 1, "held_out": 0.4}


@pytest.fixture
def profile(tiny_profile, problems, tmp_path) -> Profile:
    """Trains on three problems, is measured on two others."""
    RecordStore(tmp_path / "validation.jsonl", Problem).append(problems[3:])
    overrides = {
        "target.adapter": str(tmp_path / "adapter"),
        "problems.validation": str(tmp_path / "validation.jsonl"),
        "target_training": {"rows": 3, "training": TRAINING},
    }
    return with_overrides(tiny_profile, overrides, where="t")


def test_the_adapter_says_what_it_was_made_with_and_how_good_it_is(profile, tmp_path):
    summary = prepare_target(profile)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert summary == json.loads((tmp_path / "adapter" / "summary.json").read_text())
    assert (summary["rows_trained"], summary["rows_held_out"]) == (2, 1)
    assert summary["validation"]["n"] == 2 and 0 <= summary["validation"]["accuracy"] <= 1
    settings = json.loads((tmp_path / "adapter" / "settings.json").read_text())
    assert settings["rows"] == 3 and settings["training"]["rank"] == 2 and settings["seed"] == profile.seed


def test_an_adapter_that_is_there_is_measured_not_trained_again(profile, monkeypatch):
    first = prepare_target(profile)
    monkeypatch.setattr(module, "train_adapter", lambda *_, **__: pytest.fail("trained again"))
    assert prepare_target(profile) == first


def test_an_adapter_made_elsewhere_is_not_said_to_be_made_with_these_settings(profile, tmp_path):
    prepare_target(profile)
    (tmp_path / "adapter" / "settings.json").unlink()
    prepare_target(with_overrides(profile, {"target_training.rows": 2}, where="t"))
    assert not (tmp_path / "adapter" / "settings.json").exists()


def test_an_adapter_of_someone_else_is_not_trained_over(profile, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter that was made elsewhere"):
        prepare_target(profile)
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["adapter_config.json"]


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"target_training.rows": 2}, "rows"), ({"target_training.training.rank": 1}, "training"), ({"seed": 9}, "seed")],
)
def test_a_training_does_not_go_on_with_other_settings(profile, changed, name):
    prepare_target(profile)
    with pytest.raises(InputError, match=rf"settings\.json.*other settings \({name}: .*remove the folder"):
        prepare_target(with_overrides(profile, changed, where="t"))


def test_a_training_goes_on_with_other_settings_that_change_no_result(profile):
    first = prepare_target(profile)
    changed = {"target_training.training.save_every": 7, "target_training.training.checkpointing": True}
    assert prepare_target(with_overrides(profile, changed, where="t")) == first


def test_a_validation_problem_that_is_also_taught_is_refused(profile, problems, tmp_path):
    RecordStore(tmp_path / "validation.jsonl", Problem).append(problems[:1])
    with pytest.raises(InputError, match="'p0' is also training problem 'p0'"):
        prepare_target(profile)


def test_a_whole_solution_was_not_pruned_by_spans(problems):
    chain = module._unpruned(problems[0], lambda text: len(text.split()))
    assert chain.kept is None and chain.text == problems[0].solution and chain.actual_ratio == 1


def test_a_profile_without_a_target_training_is_refused(tiny_profile):
    with pytest.raises(InputError, match="needs no preparing"):
        prepare_target(tiny_profile)


def test_the_trainings_own_seed_counts(profile, tmp_path, monkeypatch):
    asked = []
    trained = module.train_adapter
    monkeypatch.setattr(module, "train_adapter", lambda *a, **k: asked.append(k["seed"]) or trained(*a, **k))
    prepare_target(with_overrides(profile, {"target_training.training.seed": 5}, where="t"))
    assert asked == [5]
