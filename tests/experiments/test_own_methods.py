"""Your own method, from one object to its row and curve: registered here, or named in a profile by its place."""

import sys
import textwrap

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import Prediction
from tokenskip_lib.evaluation.methods import Method, register_method
from tokenskip_lib.evaluation.metrics import markdown_table
from tokenskip_lib.experiments import evaluate as evaluation
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.workload import stage_work
from tokenskip_lib.figures.results import accuracy_figure

MODULE = """
    from tokenskip_lib.evaluation.methods import Method

    HALF = Method(
        "half", takes_ratio=True, marks_ratio=True, uses_adapter=True, prompt="Leave out {percent}%.",
        budget=lambda settings, ratio, original_tokens: max(1, round(ratio * max(original_tokens))),
        follows_original=True, colour="crimson", marker="p",
    )
"""


@pytest.fixture
def half(tmp_path, monkeypatch):
    """The place of a method that uses all that a method can: prompt, marker, adapter and a budget of its own."""
    (tmp_path / "my_methods.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_methods:HALF"
    sys.modules.pop("my_methods", None)


@pytest.fixture
def asked(tiny_profile, make_adapter, monkeypatch):
    """A function methods, attach -> the run that has evaluated them, and its requests by method."""

    def evaluate(methods: dict, *, attach: bool = False) -> tuple[Run, dict]:
        settings = {"adapter": str(make_adapter(0)), "methods": {"original": [], **methods}, "attach": attach}
        overrides = {f"evaluation.{name}": value for name, value in settings.items()}
        run = Run.create(with_overrides(tiny_profile, overrides, where="test"))
        requests: dict[str, list] = {}
        predict = evaluation.predict_all

        def noting(engine, *arguments, **options):
            generate = engine.generate

            def noted(todo, **others):
                for request in todo:
                    requests.setdefault(request.key.method, []).append(request)
                return generate(todo, **others)

            engine.generate = noted
            yield from predict(engine, *arguments, **options)
            engine.generate = generate

        monkeypatch.setattr(evaluation, "predict_all", noting)
        stages.evaluate(run)
        return run, requests

    return evaluate


def test_a_registered_prompt_is_evaluated_tabled_and_drawn(own_methods, asked):
    register_method(Method("hurry", prompt="Hurry up."))
    run, requests = asked({"hurry": []})
    assert all("Hurry up." in request.prompt for request in requests["hurry"])
    metrics = pd.read_csv(run.folder / "results" / "metrics.csv", keep_default_na=False)
    assert list(metrics["method"]) == ["original", "hurry"] and set(metrics["scorer"]) == {""}
    assert "| hurry |  | 2 |" in markdown_table(metrics)
    axes = accuracy_figure(metrics, "t").axes[0]
    assert {"original", "hurry"} == {text.get_text() for text in axes.texts}
    plt.close("all")


@pytest.mark.parametrize("attach", [False, True])
def test_a_method_named_by_its_place_goes_from_the_profile_to_the_figure(own_methods, half, asked, attach):
    run, requests = asked({half: [0.5, 0.25], "truncation": [0.5]}, attach=attach)
    predictions = list(run.store(steps.PREDICTIONS, Prediction))
    longest = max(p.chain_tokens for p in predictions if p.method == "original")
    budgets = {p.ratio: p.max_new_tokens for p in predictions if p.method == "half"}
    assert budgets == {ratio: max(1, round(ratio * longest)) for ratio in (0.5, 0.25)}
    eos = requests["half"][0].prompt.count("<|im_end|>0.5<|im_end|>")
    assert eos == 1 and "Leave out 50%." in requests["half"][0].prompt
    switched = {name: {request.adapter for request in made} for name, made in requests.items()}
    on = {"tokenskip"} if attach else {None}
    assert switched == {"original": {None}, "truncation": {None}, "half": on}

    metrics = pd.read_csv(run.folder / "results" / "metrics.csv", keep_default_na=False)
    assert list(metrics["method"]) == ["original", "truncation", "half", "half"]  # own ones after the built-in ones
    assert list(metrics["scorer"]) == ["", "", run.profile.pruned_by, run.profile.pruned_by]
    assert "| half | 0.25 | 2 |" in markdown_table(metrics)
    axes = accuracy_figure(metrics, "t").axes[-1]
    assert "crimson" in {line.get_color() for line in axes.lines}
    plt.close("all")
    planned = {part.part: part for part in stage_work(run.profile, checkpointing=False) if part.stage == "evaluate"}
    taken = [p.chain_tokens + p.answer_tokens for p in predictions if (p.method, p.ratio) == ("half", 0.25)]
    assert planned["half 0.25"].written == sum(taken)
