"""Evaluation with methods that call twice, follow the original, or scale the adapter; what a kill leaves of it."""

import json

import pytest

from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import FirstCall, InputError, Prediction
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.evaluation.method import length_limit
from tokenskip_lib.evaluation.methods import METHODS, method_ratios
from tokenskip_lib.experiments import evaluate as evaluation
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.evaluate import asked_levels, plan_passes
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.workload import stage_work
from tokenskip_lib.inference import build
from tokenskip_lib.inference.engine import Generation, Request, TransformersEngine
from tokenskip_lib.models.loading import load_model


@pytest.fixture
def evaluated(tiny_profile, make_adapter, tmp_path):
    """A function methods, name, settings -> a run of that name that has evaluated them by a random adapter."""
    adapter = str(make_adapter(0))

    def make(methods: dict, name: str = "run", **settings) -> Run:
        values = {"adapter": adapter, "methods": {"original": [], **methods}, **settings}
        overrides = {f"evaluation.{key}": value for key, value in values.items()}
        run = Run.create(with_overrides(tiny_profile, {"run_dir": str(tmp_path / name), **overrides}, where="test"))
        stages.evaluate(run)
        return run

    return make


def _outputs(run: Run) -> dict:
    return {p.key: p.output for p in run.store(steps.PREDICTIONS, Prediction)}


def test_an_answer_by_a_method_that_is_none_is_refused_and_not_counted(evaluated):
    run = evaluated({})
    [first, *_] = run.store(steps.PREDICTIONS, Prediction)
    run.store(steps.PREDICTIONS, Prediction).append([first.model_copy(update={"method": "orignal"})])
    with pytest.raises(InputError, match=rf"{steps.PREDICTIONS}: problem '{first.id}'.*did you mean 'original'"):
        stages.evaluate(run)


# Strengths of the adapter.


def test_strength_0_is_the_target_model_and_strength_1_the_adapter_asked_for_the_smallest_ratio(
    evaluated, tiny_profile
):
    outputs = _outputs(evaluated({"tokenskip": [0.5], "adapter_scaling": [0, 0.5, 1, 1.5]}))
    smallest = min(tiny_profile.pruning.ratios)
    assert smallest == 0.5
    for name in ("p3", "p4"):
        assert outputs[name, "adapter_scaling", 1.0] == outputs[name, "tokenskip", 0.5]
        scaled = {strength: outputs[name, "adapter_scaling", strength] for strength in (0.0, 0.5, 1.0, 1.5)}
        assert len(set(scaled.values())) > 2  # a random adapter changes what a random model writes


def test_strength_0_answers_without_the_adapter(evaluated, tiny_profile, tiny_tokenizer, problems):
    outputs = _outputs(evaluated({"adapter_scaling": [0]}))
    prompts = {
        p.id: METHODS["tokenskip"].build_prompt(tiny_tokenizer, p.question, tiny_profile.prompts, 0.5)
        for p in problems[3:]
    }
    requests = [Request(key=(name,), prompt=prompt, max_new_tokens=8) for name, prompt in prompts.items()]
    engine = TransformersEngine(load_model(tiny_profile.target), tiny_tokenizer, 2)
    alone = {g.key[0]: g.text for batch in engine.generate(requests) for g in batch}
    assert {name: outputs[name, "adapter_scaling", 0.0] for name in alone} == alone


def test_each_strength_is_one_model_and_the_ends_need_none_of_their_own(evaluated, monkeypatch):
    loaded = []
    monkeypatch.setattr(build, "load_model", lambda *a, **kw: loaded.append(kw) or load_model(*a, **kw))
    evaluated({"tokenskip": [0.5], "adapter_scaling": [0, 0.5, 1, 1.5]})
    assert [(kw["adapter"] is not None, kw["strength"]) for kw in loaded] == [
        (False, 0.0), (True, 1.0), (True, 0.5), (True, 1.5),
    ]  # fmt: skip


def test_an_attached_adapter_is_scaled_as_a_merged_one(evaluated):
    methods = {"tokenskip": [0.5], "truncation": [0.5], "adapter_scaling": [0, 0.5, 1]}
    merged = _outputs(evaluated(methods, "merged"))
    assert _outputs(evaluated(methods, "attached", attach=True)) == merged


def test_the_target_model_needs_no_adapter_for_strength_0(tiny_profile):
    passes = plan_passes(tiny_profile, [("original", 1.0), ("adapter_scaling", 0.0)], None)
    assert [(step.pairs, step.adapter) for step in passes] == [([("original", 1.0), ("adapter_scaling", 0.0)], None)]


def test_a_server_cannot_scale_the_adapter_and_says_so_before_anything_is_asked(tiny_profile):
    server = ServerSettings(url="http://127.0.0.1:1/v1", model="base")
    asked = {"evaluation.methods": {"original": [], "adapter_scaling": [0.5]}}
    scaled = with_overrides(tiny_profile, asked, where="test")
    run = Run.create(scaled.model_copy(update={"server": server}))
    for refuse in (lambda: stages.evaluate(run), lambda: stages.check_names(run.profile)):
        with pytest.raises(InputError, match=r"adapter_scaling: a server has the adapter as it was.*server=null"):
            refuse()
    assert not list(run.folder.glob("05_*"))
    ends = {"evaluation.methods": {"original": [], "adapter_scaling": [0, 1]}}
    assert len(asked_levels(with_overrides(run.profile, ends, where="test"))) == 3


# Limits from the original's chains.


def test_a_limit_states_the_originals_mean_length_and_the_same_for_all(evaluated, monkeypatch):
    asked = {}
    predict = evaluation.predict_all

    def noting(engine, *arguments, **options):
        generate = engine.generate

        def noted(todo, **others):
            asked.update({request.key: request.prompt for request in todo})
            return generate(todo, **others)

        monkeypatch.setattr(engine, "generate", noted)
        return predict(engine, *arguments, **options)

    monkeypatch.setattr(evaluation, "predict_all", noting)
    run = evaluated({"word_limit": [0.5], "token_limit": [0.5, 0.9]})
    original = [p for p in run.store(steps.PREDICTIONS, Prediction) if p.method == "original"]
    words, tokens = [len(p.chain.split()) for p in original], [p.chain_tokens for p in original]
    for name in ("p3", "p4"):
        assert f"Only use {length_limit(words, 0.5)} words" in asked[name, "word_limit", 0.5]
        assert f"Only use {length_limit(tokens, 0.9)} tokens" in asked[name, "token_limit", 0.9]
    assert {p.max_new_tokens for p in run.store(steps.PREDICTIONS, Prediction)} == {8}


# Two calls.


class Scripted:
    """An engine in place of a model: the first call for p3 states a budget, the one for p4 none; counts its answers."""

    def __init__(self, dies_after: int | None = None):
        self.asked, self.dies_after = [], dies_after

    def generate(self, requests, *, is_done=lambda _: False, label=""):
        for request in sorted(requests, key=lambda r: r.key):
            if is_done(request.key):
                continue
            if self.dies_after is not None and len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            first = "[[budget]]" in request.prompt
            text = {"p3": "Budget: [[12]]", "p4": "A few."}[request.key[0]] if first else "3 + 4 = 7\n#### 7"
            yield [Generation(request.key, text, len(text.split()), cut_off=False, seconds=0.5)]


@pytest.fixture
def twice(tiny_profile, tmp_path, make_adapter, monkeypatch):
    """A function name, engine -> a run of tale_ep that this engine answers."""
    adapter = str(make_adapter(0))

    def make(name: str, engine: Scripted) -> Run:
        overrides = {"evaluation.methods": {"original": [], "tale_ep": []}, "evaluation.adapter": adapter}
        run = Run.create(with_overrides(tiny_profile, {"run_dir": str(tmp_path / name), **overrides}, where="test"))
        monkeypatch.setattr(evaluation, "build_engine", lambda *_, **__: engine)
        stages.evaluate(run)
        return run

    return make


def test_the_second_call_follows_from_the_first_and_both_are_on_disk(twice):
    engine = Scripted()
    run = twice("run", engine)
    calls = {call.id: call for call in run.store(steps.FIRST_CALLS, FirstCall)}
    assert {name: (call.output, call.budget) for name, call in calls.items()} == {
        "p3": ("Budget: [[12]]", 12),
        "p4": ("A few.", None),
    }
    seconds = {r.key[0]: r.prompt for r in engine.asked if r.key[1] == "tale_ep" and "[[budget]]" not in r.prompt}
    assert "step by step and use less than 12 tokens:" in seconds["p3"]
    assert "Let's think step by step:<|im_end|>" in seconds["p4"]
    original, tale = (
        {p.id: p for p in run.store(steps.PREDICTIONS, Prediction) if p.method == m} for m in ("original", "tale_ep")
    )
    for name, call in calls.items():
        assert tale[name].first_call_tokens == call.tokens > 0
        assert tale[name].chain_tokens == original[name].chain_tokens + call.tokens
    noted = json.loads((run.folder / "profile.json").read_text())["stages"]["evaluate"]
    assert (noted["first_calls"], noted["first_calls_without_a_budget"]) == (2, 1)


@pytest.mark.parametrize("answers", range(6))
def test_a_killed_evaluation_neither_loses_nor_doubles_a_call(twice, answers):
    whole = twice("whole", Scripted())
    with pytest.raises(KeyboardInterrupt):
        twice("killed", Scripted(dies_after=answers))
    rest = Scripted()
    killed = twice("killed", rest)
    assert len(rest.asked) == 6 - answers  # two first calls, two second ones, two answers of the original
    for name in (steps.FIRST_CALLS, steps.PREDICTIONS):
        assert (killed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_methods_that_call_once_leave_no_first_calls(evaluated):
    run = evaluated({"be_concise": []})
    assert not (run.folder / steps.FIRST_CALLS).exists()
    assert "first_calls" not in json.loads((run.folder / "profile.json").read_text())["stages"]["evaluate"]


def test_a_finished_evaluation_asks_nothing_again(twice, monkeypatch):
    run = twice("run", Scripted())
    before = (run.folder / steps.PREDICTIONS).read_bytes()
    monkeypatch.setattr(evaluation, "call_first", lambda *_, **__: pytest.fail("called again"))
    again = Scripted()
    twice("run", again)
    assert not again.asked and (run.folder / steps.PREDICTIONS).read_bytes() == before


# The plan.


def test_the_plan_counts_both_calls_and_every_strength(twice, tiny_profile):
    methods = {"original": [], "tale_ep": [], "word_limit": [0.5], "adapter_scaling": [0, 0.5, 1]}
    profile = with_overrides(tiny_profile, {"evaluation.methods": methods}, where="test")
    parts = {part.part: part for part in stage_work(profile, checkpointing=False) if part.stage == "evaluate"}
    assert list(parts) == [
        "original 1", "tale_ep, first call", "tale_ep 1", "word_limit 0.5",
        "adapter_scaling 1", "adapter_scaling 0.5", "adapter_scaling 0",
    ]  # fmt: skip
    whole = parts["original 1"].written
    assert (
        parts["tale_ep, first call"].written == parts["tale_ep 1"].written == parts["word_limit 0.5"].written == whole
    )
    # Between the whole chain at strength 0 and the smallest ratio, 0.5, at strength 1.
    shares = [parts[f"adapter_scaling {strength}"].answers.mean / (whole / 2) for strength in (0, 0.5, 1)]
    assert shares == [1, 0.75, 0.5]

    run = twice("run", Scripted())
    after = {part.part: part for part in stage_work(run.profile, checkpointing=False) if part.stage == "evaluate"}
    spent = sum(call.tokens for call in run.store(steps.FIRST_CALLS, FirstCall))
    assert after["tale_ep, first call"].written == spent
    assert after["tale_ep 1"].written == after["original 1"].written  # the first call is not counted twice


def test_a_registered_name_is_asked_once_for_each_level(tiny_profile):
    pairs = method_ratios(tiny_profile.evaluation)
    planned = [pair for step in plan_passes(tiny_profile, pairs, "adapter") for pair in step.pairs]
    assert sorted(planned) == sorted(pairs)
