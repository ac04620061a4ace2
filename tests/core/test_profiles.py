"""Profiles: what ships is valid, what is mistyped is refused with the nearest valid name."""

import os

import pytest
import yaml

from tokenskip_lib.core.profiles import load_profile, parse_overrides, profile_names
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.methods import method_ratios
from tokenskip_lib.models.loading import WHEEL_MODELS
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
    prompts = {"demo-more": set(), "demo": {"lc_prompt"}}  # demo-full asks with all of them
    baselines = prompts.get(name, {"be_concise", "only_numbers", "abbre_words", "lc_prompt"})
    assert set(dict(pairs)) >= {"tokenskip", "truncation", *baselines}
    # Models of the hub are named with their commit, so that a run years later has the same weights.
    assert profile.target.model in WHEEL_MODELS or len(profile.target.revision) == 40
    assert profile.importance.scorer != "llmlingua2" or len(profile.importance.classifier_revision) == 40


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


def _levels(*, start: str, aliases: int) -> str:
    """Nine levels, each of which is the level before several times: the last stands for billions of values."""
    lines = [f"a0: &a0 {start}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * aliases)}]" for n in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: 2024-01-01", ":2: a value of the kind timestamp"),
        ("studies: {a: {vary: [{training.epochs: 2024-01-01}]}}", ":2: a value of the kind timestamp"),
        ("2024-01-01: 5", ":2: a value of the kind timestamp"),
        ("seed: 2024-13-45", ":2: a value of the kind timestamp"),
        ("seed: !!set {a}", ":2: a value of the kind set"),
        ("seed: !!binary aGk=", ":2: a value of the kind binary"),
        ("seed: !mine x", ":2: a value of the kind !mine"),
        ("seed: !!python/object:os.system x", ":2: a value of the kind python/object:os.system"),
        ("seed: !!int x", ":2: 'x' is no int"),
        ("seed: !!int ''", ":2: '' is no int"),
        ("seed: !!float x", ":2: 'x' is no float"),
        ("seed: !!bool x", ":2: 'x' is no bool"),
        (f"seed: {'9' * 5000}", "is no int"),
        ("training: {epochs: .inf}", ":2: .inf is not a finite number"),
        ("studies: {a: {vary: [{training.epochs: .nan}]}}", ":2: .nan is not a finite number"),
        ('run_dir: "a\\0b"', r":2: 'a\x00b' has a NUL"),
        ('description: "\\uD83D"', r":2: '\ud83d' has a NUL or half of a surrogate pair"),
        (f"seed: {'[' * 500}{']' * 500}", "nested too deeply"),
        (f"studies: {{a: {{vary: [{{x: {'[' * 100}{']' * 100}}}]}}}}", ":2: nested too deeply"),
        ("\n".join("  " * depth + "a:" for depth in range(500)), "nested too deeply"),
        (_levels(start="[x, x]", aliases=9), "with its aliases (*name) it stands for more than"),
        (_levels(start="{x: 1}", aliases=9).replace("[", "{<<: [").replace("]", "]}"), "with its aliases"),
        ("studies: &a [*a]", ":2: with its aliases"),
        ("a: &a {<<: *a}", ":2: with its aliases"),
        ("<<: 5", "not YAML: "),
        ("[1]: 2", "not YAML: "),
        ("description: \x01", "not YAML: "),
    ],
)
def test_a_value_that_no_setting_can_have_is_refused_by_its_line(tmp_path, text, says):
    own = tmp_path / "own.yaml"
    own.write_text(f"# mine\n{text}\n", encoding="utf-8")
    message = _refusal(load_profile, str(own))
    assert message.startswith(str(own)) and says in message and message.isprintable() and len(message) < 1100


@pytest.mark.parametrize(
    "value", ["2024-01-01", "!!int x", "[" * 500, "9" * 5000, "&a [*a]", "\x1b[31m", '"\\0"', ".inf"]
)
def test_an_assigned_value_that_no_setting_can_have_is_refused(value):
    message = _refusal(parse_overrides, [f"seed={value}"])
    assert message.startswith("--set seed=") and message.isprintable()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_levels(start="{x: 1}", aliases=2).replace("[", "{<<: [").replace("]", "]}"), "unknown setting 'a0'"),
        ('"\\e[31mx\\n": 1', r"unknown setting '\x1b[31mx\n'"),
        (f"seed: {'x' * 100_000}", "seed: Input should be a valid integer"),
    ],
)
def test_an_error_that_quotes_a_file_is_a_short_printable_line(root, tmp_path, text, says):
    own = tmp_path / "own.yaml"
    own.write_text((root / "tokenskip_lib/profiles/smoke.yaml").read_text() + f"\n{text}\n")
    message = _refusal(load_profile, str(own))
    assert says in message and message.isprintable() and len(message) < 1100


def test_anchors_merge_keys_and_quoted_dates_are_read(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "name: '2024-01-01'\ndescription: &text short\nprompts: {system: *text}\ntraining: &slow {epochs: 5, rank: 2}\n"
        "target_training: {rows: 3, training: {<<: *slow, epochs: 1}}\ntarget: {model: m}\n"
        "problems: {train: gsm8k, test: gsm8k}\nevaluation: {methods: {original: []}}\n"
    )
    profile = load_profile(str(tmp_path / "own.yaml"))
    assert (profile.name, profile.prompts.system, profile.training.epochs) == ("2024-01-01", "short", 5)
    assert (profile.target_training.training.epochs, profile.target_training.training.rank) == (1, 2)


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "a/b",
        "/etc/x",
        ".",
        "..",
        ".x",
        "",
        " ",
        "x" * 101,
        "é" * 51,
        "a\nb",
        "\x1b[31mx",
        "a\\b",
        "-x",
        "$\\frac{$",
    ],
)
@pytest.mark.parametrize("place", ["name", "studies"])
def test_a_name_that_enters_file_names_and_titles_is_a_plain_one(name, place):
    value = name if place == "name" else {name: {"vary": [{"seed": 1}]}}
    message = _refusal(load_profile, "smoke", {place: value})
    assert f"{place}" in message and "a name of files" in message and message.isprintable()


@pytest.mark.parametrize("name", ["smoke-2.5_B", "my profile (1)", "über", "漢字", "x" * 100])
def test_plain_names_are_free(name):
    studies = {name: {"vary": [{"seed": 1}]}}
    assert load_profile("smoke", {"name": name, "studies": studies}).name == name


@pytest.mark.parametrize("seed", [-1, 2**32, 10**4000])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    assert "seed" in _refusal(load_profile, "smoke", {"seed": seed})
    assert "training.seed" in _refusal(load_profile, "smoke", {"training.seed": seed})


def test_a_file_in_another_encoding_a_folder_and_a_pipe_are_named(tmp_path):
    own = tmp_path / "own.yaml"
    for content in ("description: café".encode("latin-1"), "description: x".encode("utf-16")):
        own.write_bytes(content)
        assert _refusal(load_profile, str(own)) == f"{own}: not UTF-8; save the file in that encoding"
    (tmp_path / "folder.yaml").mkdir()
    assert "a folder" in _refusal(load_profile, str(tmp_path / "folder.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "a pipe" in _refusal(load_profile, str(tmp_path / "pipe.yaml"))
    assert "no such file" in _refusal(load_profile, f"{tmp_path}/a\0b.yaml")


def test_the_folder_of_a_run_has_a_name():
    assert "run_dir" in _refusal(load_profile, "smoke", {"run_dir": ""})
