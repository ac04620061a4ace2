"""Methods: which there are, what each takes, their budgets, and your own."""

import sys
import textwrap
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import EvaluationSettings, PromptSettings
from tokenskip_lib.evaluation.method import Known, Method, length_limit, truncation_budget
from tokenskip_lib.evaluation.methods import METHODS, answer_budget, find_method, method_ratios, register_method
from tokenskip_lib.evaluation.predictions import build_requests


def _settings(**methods) -> EvaluationSettings:
    return EvaluationSettings(methods={"original": [], **methods})


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=20), st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
)
def test_the_truncation_budget_is_the_smallest_that_spends_the_ratio(lengths, ratio):
    wanted = Fraction(str(ratio)) * sum(lengths)

    def spent(cap):
        return sum(min(length, cap) for length in lengths)

    cap = truncation_budget(lengths, ratio)
    assert spent(cap) >= wanted
    assert cap == 1 or spent(cap - 1) < wanted


def test_the_truncation_budget_lets_short_answers_finish():
    assert truncation_budget([10, 10, 100], 0.5) == 40  # 10 + 10 + 40 = half of 120
    assert truncation_budget([10, 10, 100], 1.0) == 100
    assert truncation_budget([8], 0.5) == 4


def test_empty_chains_cannot_be_truncated():
    with pytest.raises(InputError, match="nothing to truncate"):
        truncation_budget([0, 0], 0.5)


def test_methods_and_ratios_are_listed_original_first_ratios_descending():
    settings = _settings(tokenskip=[0.5, 1.0, 0.7], be_concise=[], truncation=[0.5])
    assert method_ratios(settings) == [
        ("original", 1.0),
        ("tokenskip", 1.0),
        ("tokenskip", 0.7),
        ("tokenskip", 0.5),
        ("be_concise", 1.0),
        ("truncation", 0.5),
    ]


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'tokenskip'"):
        method_ratios(_settings(tokenskp=[0.5]))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.level])
def test_a_method_that_reads_a_level_needs_one(method):
    kind = {"ratio": "ratios", "strength": "strengths of the adapter"}[METHODS[method].level]
    with pytest.raises(InputError, match=f"{method} needs a list of {kind}"):
        method_ratios(_settings(**{method: []}))


@pytest.mark.parametrize("ratio", [0, 1.0001, 1.5])
def test_only_strengths_may_be_0_or_above_1(ratio):
    assert method_ratios(_settings(adapter_scaling=[ratio])) == [("original", 1.0), ("adapter_scaling", ratio)]
    for method in ("tokenskip", "word_limit"):
        with pytest.raises(InputError, match=f"methods.{method}: a ratio is above 0 and at most 1, not {ratio:g}"):
            method_ratios(_settings(**{method: [0.5, ratio]}))


@pytest.mark.parametrize("level", [-0.1, 1.6, float("nan")])
def test_no_method_has_other_levels(level):
    with pytest.raises(ValueError, match="adapter_scaling"):
        _settings(adapter_scaling=[level])


def test_a_level_is_written_as_what_it_is():
    said = {name: METHODS[name].say_level(1.0) for name in ("original", "tokenskip", "adapter_scaling")}
    assert said == {"original": "", "tokenskip": "1.0", "adapter_scaling": "strength 1"}


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.level])
def test_a_method_that_reads_no_ratio_takes_none(method):
    with pytest.raises(InputError, match=f"{method} takes no ratios"):
        method_ratios(EvaluationSettings(methods={"original": [], method: [0.5]}))


BRIEF = Method("brief", takes_ratio=True, prompt="Write \\boxed{} after {percent}% fewer words.", colour="red")


def test_an_own_method_is_known_once_it_is_registered(own_methods, problems, tiny_tokenizer):
    with pytest.raises(InputError, match="unknown method 'brief'"):
        method_ratios(_settings(brief=[0.7]))
    register_method(BRIEF)
    register_method(BRIEF)  # as a notebook's cell does that is run twice
    assert find_method("brief") is BRIEF
    assert method_ratios(_settings(brief=[0.5, 0.7])) == [("original", 1.0), ("brief", 0.7), ("brief", 0.5)]
    [request] = build_requests(
        problems[:1], tiny_tokenizer, PromptSettings(), method="brief", ratio=0.7, max_new_tokens=9
    )
    assert "\\boxed{}. Write \\boxed{} after 30% fewer words.\n" in request.prompt


@pytest.mark.parametrize(
    ("name", "message"), [("tokenskip", "a method of this library"), ("a:b", "colon"), ("", "empty")]
)
def test_a_name_that_would_be_mistaken_for_another_is_refused(own_methods, name, message):
    with pytest.raises(InputError, match=message):
        register_method(Method(name, prompt="Hurry."))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of one's own in the working directory: `own_methods_of_a_test`."""
    text = """
        from tokenskip_lib.evaluation.methods import Method

        HURRY = Method("hurry", prompt="Hurry up.")
        WORDS = "Hurry up."
    """
    (tmp_path / "own_methods_of_a_test.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_methods_of_a_test"
    sys.modules.pop("own_methods_of_a_test", None)


def test_an_own_method_is_found_by_module_and_attribute(own_methods, own_module):
    settings = _settings(**{f"{own_module}:HURRY": []})
    assert method_ratios(settings) == [("original", 1.0), ("hurry", 1.0)]
    assert find_method("hurry").prompt == "Hurry up."
    with pytest.raises(InputError, match="two methods of the name 'hurry'"):
        method_ratios(_settings(**{f"{own_module}:HURRY": [], "hurry": []}))
    with pytest.raises(InputError, match="takes no ratios"):
        method_ratios(_settings(**{f"{own_module}:HURRY": [0.5]}))


@pytest.mark.parametrize(
    ("attribute", "message"), [("WORDS", "is a str; it must be a Method"), ("HURY", "has no 'HURY'")]
)
def test_what_is_no_method_is_refused_in_one_line(own_methods, own_module, attribute, message):
    with pytest.raises(InputError, match=message):
        find_method(f"{own_module}:{attribute}")


@pytest.mark.parametrize(
    ("method", "ratio", "budget", "tokens"),
    [
        ("original", 1.0, "scaled", 100),
        ("tokenskip", 0.5, "fixed", 100),
        ("tokenskip", 0.5, "scaled", 50),
        ("tokenskip", 0.001, "scaled", 1),
        ("lc_prompt", 0.5, "scaled", 100),
        ("truncation", 0.5, "fixed", 40),
    ],
)
def test_each_method_has_its_budget(method, ratio, budget, tokens):
    settings = _settings().model_copy(update={"budget": budget, "max_new_tokens": 100})
    assert answer_budget(settings, method, ratio, [10, 10, 100]) == tokens


def test_a_method_that_follows_the_original_has_no_budget_before_it():
    with pytest.raises(ValueError, match="'truncation' follows from the original's answers"):
        answer_budget(_settings(), "truncation", 0.5)


def test_a_limit_is_the_ratios_share_of_the_originals_mean_chain():
    known = Known(original_tokens=[30, 50], original_words=[10, 15])
    assert METHODS["word_limit"].sentence(0.5, known) == "Only use 6 words for your answer."  # of 12.5
    assert METHODS["token_limit"].sentence(0.9, known) == "Only use 36 tokens for your answer."
    assert length_limit([1, 1], 0.1) == 1


@pytest.mark.parametrize("method", ["word_limit", "token_limit"])
def test_a_limit_without_the_originals_chains_is_refused(method):
    for known in (None, Known(smallest_ratio=0.5)):
        with pytest.raises(ValueError, match=f"'{method}' follows from the original's answers"):
            METHODS[method].sentence(0.5, known)
    with pytest.raises(InputError, match="the original's chains are empty"):
        METHODS[method].sentence(0.5, Known(original_tokens=[0, 0], original_words=[0, 0]))


def test_a_scaled_adapter_is_always_asked_for_the_smallest_ratio(tiny_tokenizer):
    scaling, tokenskip = METHODS["adapter_scaling"], METHODS["tokenskip"]
    known, settings = Known(smallest_ratio=0.4), PromptSettings()
    wanted = tokenskip.build_prompt(tiny_tokenizer, "How many?", settings, 0.4)
    assert {scaling.build_prompt(tiny_tokenizer, "How many?", settings, s, known) for s in (0, 0.5, 1.5)} == {wanted}
    with pytest.raises(ValueError, match="'adapter_scaling' follows from the adapter's smallest ratio"):
        scaling.build_prompt(tiny_tokenizer, "How many?", settings, 0.5)


def test_the_strength_of_every_method_says_which_model_answers():
    strengths = {name: method.strength(0.7) for name, method in METHODS.items()}
    assert {name for name, strength in strengths.items() if strength} == {"tokenskip", "adapter_scaling"}
    assert strengths["tokenskip"] == 1 and strengths["adapter_scaling"] == 0.7


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "At most {words} words."}, "need follows_original=True"),
        ({"system": "Be brief."}, "needs a request"),
        ({"request": "{question}", "first_request": "How many?"}, "go together"),
    ],
)
def test_a_method_that_could_not_ask_is_refused_when_it_is_made(fields, says):
    with pytest.raises(InputError, match=says):
        Method("mine", **fields)
