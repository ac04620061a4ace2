"""Profiles: what ships is valid, what is mistyped is refused with the nearest valid name."""

import pytest
import yaml

from tokenskip_lib.core.profiles import load_profile, parse_overrides, profile_names
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.methods import method_ratios
from tokenskip_lib.problems.sets import PROBLEM_SETS
from tokenskip_lib.pruning.registry import check_scorers


def _refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_is_valid(name):
    profile = load_profile(name)
    pairs = method_ratios(profile.evaluation)
    check_scorers([profile.importance.scorer, *profile.importance.compare_with])
    assert profile.name == name and profile.run_dir == f"data/runs/{name}" and profile.description
    assert pairs[0] == ("original", 1.0) and len(pairs) == len(set(pairs))
    assert {profile.problems.train, profile.problems.test} <= set(PROBLEM_SETS)
    assert set(dict(pairs)) >= {"tokenskip", "truncation", "be_concise", "only_numbers", "abbre_words", "lc_prompt"}


def test_the_smoke_and_demo_profiles_ship():
    assert {"smoke", "demo"} <= set(profile_names())


def test_a_published_experiment_trains_with_the_papers_recipe():
    training = load_profile("qwen2.5-7b-gsm8k").training
    assert (training.rank, training.alpha, training.learning_rate, training.epochs) == (8, 16, 5e-5, 3)
    assert (training.batch_size, training.accumulation, training.warmup) == (1, 8, 0.1)
    assert (training.max_tokens, training.held_out) == (2048, 0.1)
    assert load_profile("qwen2.5-7b-gsm8k").pruning.ratios == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    assert "did you mean 'demo'" in _refusal(load_profile, "deom")
    assert "smoke" in _refusal(load_profile, "xyzzy")  # nothing is near: all are listed


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("training.epoch", "epochs"),
        ("trainin.epochs", "training"),
        ("evaluation.max_new_token", "max_new_tokens"),
        ("target_training.training.warm", "warmup"),
        ("sead", "seed"),
        ("seed.value", "seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(key, nearest):
    message = _refusal(load_profile, "smoke", {key: 1})
    assert nearest in message and "unknown setting" in message


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest_name(tmp_path):
    values = load_profile("smoke").model_dump() | {"name": "own"}
    values["training"]["epoch"] = values["training"].pop("epochs")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    message = _refusal(load_profile, str(tmp_path / "own.yaml"))
    assert "training.epoch'" in message and "did you mean 'epochs'" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pruning.ratios", [0, 1]),
        ("pruning.ratios", [0.5, 1.5]),
        ("pruning.ratios", [0.7, 0.5]),
        ("pruning.ratios", [0.5, 0.5]),
        ("pruning.ratios", []),
        ("evaluation.methods", {"original": [], "adapter_scaling": [1.6]}),
        ("evaluation.methods", {"original": [], "adapter_scaling": [-0.1]}),
        ("evaluation.methods", {"tokenskip": [0.5]}),
        ("training.epochs", "many"),
        ("training.epochs", 0),
        ("training.held_out", 1),
        ("chains.batch_size", 0),
        ("target.dtype", "float8"),
        ("prompts.format", "reference"),
    ],
)
def test_a_bad_value_is_refused_and_named(key, value):
    assert key in _refusal(load_profile, "smoke", {key: value})


@pytest.mark.parametrize("key", ["target.dtype", "prompts.format"])
def test_a_choice_that_is_none_is_answered_with_the_valid_ones(key):
    message = _refusal(load_profile, "smoke", {key: "nonsense"})
    assert {"target.dtype": "bfloat16", "prompts.format": "reference_qwen"}[key] in message and "nonsense" in message


def test_defaults_that_the_file_does_not_mention_can_be_overridden(root):
    written = yaml.safe_load((root / "tokenskip_lib/profiles/demo.yaml").read_text())
    assert "ratios" not in written["pruning"] and "system" not in written["prompts"]
    profile = load_profile("demo", {"pruning.ratios": [0.3, 1.0], "prompts.system": "Be brief.", "training.rank": 2})
    assert profile.pruning.ratios == [0.3, 1.0] and profile.prompts.system == "Be brief."
    assert profile.training.rank == 2 and profile.training.alpha == load_profile("demo").training.alpha


def test_overrides_do_not_leak_into_the_next_load():
    before = load_profile("smoke")
    load_profile("smoke", {"training.epochs": 9, "seed": 5})
    assert load_profile("smoke") == before


def test_a_section_that_is_no_mapping_is_refused_with_a_key_below_it_set(tmp_path):
    values = load_profile("smoke").model_dump() | {"training": "fast"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    assert "training" in _refusal(load_profile, str(tmp_path / "own.yaml"), {"training.epochs": 1})


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1\n", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    assert "own.yaml" in _refusal(load_profile, str(tmp_path / "own.yaml"))
    assert "none.yaml" in _refusal(load_profile, str(tmp_path / "none.yaml"))


def test_an_own_file_gets_its_name_and_folder_from_the_file(tmp_path):
    values = load_profile("smoke").model_dump()
    del values["name"], values["run_dir"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    profile = load_profile(str(tmp_path / "mine.yaml"))
    assert (profile.name, profile.run_dir) == ("mine", "data/runs/mine")


def test_original_comes_first_wherever_it_stands():
    methods = {"tokenskip": [0.5], "original": [], "be_concise": []}
    assert list(load_profile("smoke", {"evaluation.methods": methods}).evaluation.methods) == [
        "original",
        "tokenskip",
        "be_concise",
    ]


def test_assignments_are_read_as_yaml():
    parsed = parse_overrides(
        ["training.epochs=1", "pruning.ratios=[0.5, 1]", "target.adapter=null", "run_dir=a=b", "x="]
    )
    assert parsed == {
        "training.epochs": 1,
        "pruning.ratios": [0.5, 1],
        "target.adapter": None,
        "run_dir": "a=b",
        "x": None,
    }


@pytest.mark.parametrize("assignment", ["training.epochs", "=1", "pruning.ratios=[1"])
def test_an_assignment_that_is_none_is_refused_as_it_was_written(assignment):
    assert assignment in _refusal(parse_overrides, [assignment])


def test_the_thinking_models_profile_prunes_the_thinking_and_has_no_system_message():
    profile = load_profile("r1-distill-qwen-7b-gsm8k")
    assert profile.prompts.layout == "think" and profile.prompts.system == ""
    assert profile.training.max_tokens > profile.chains.max_chain_tokens
