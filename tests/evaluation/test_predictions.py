"""Requests of each method, and how an answer is graded and counted."""

import pytest

from tokenskip_lib.core.records import FirstCall, PredictionKey
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.evaluation.predictions import build_requests, call_first, grade_generation
from tokenskip_lib.inference.engine import Generation
from tokenskip_lib.models.prompts import build_prompt


def test_requests_differ_between_methods_in_their_prompt_alone(problems, tiny_tokenizer):
    reduce = "Please reduce 30% of the words in your Chain-of-Thought process."
    for method, ratio, sentence, marked in (
        ("original", 1.0, "", None),
        ("tokenskip", 0.5, "", 0.5),
        ("truncation", 0.5, "", None),
        ("lc_prompt", 0.7, reduce, None),
    ):
        made = build_requests(problems, tiny_tokenizer, PromptSettings(), method=method, ratio=ratio, max_new_tokens=33)
        assert [(r.key, r.max_new_tokens) for r in made] == [((p.id, method, ratio), 33) for p in problems]
        assert [r.prompt for r in made] == [
            build_prompt(tiny_tokenizer, p.question, PromptSettings(), sentence=sentence, ratio=marked)
            for p in problems
        ]


def test_a_prediction_counts_chain_and_answer_apart(problems):
    text = "3 + 4 = 7 apples.\n\nThe final answer is: $\\boxed{7}$"
    generation = Generation(key=("p0", "tokenskip", 0.5), text=text, tokens=15, cut_off=False, seconds=0.123456)
    made = grade_generation(
        problems[0], generation, max_new_tokens=64, count_tokens=lambda texts: [len(t.split()) for t in texts]
    )
    assert (made.id, made.method, made.ratio, made.answer, made.output) == ("p0", "tokenskip", 0.5, "7", text)
    assert made.chain + "The final answer is: $\\boxed{7}$" == text
    assert (made.chain_tokens, made.answer_tokens, made.prediction, made.is_correct) == (6, 5, "7", True)
    assert (made.max_new_tokens, made.cut_off, made.seconds) == (64, False, 0.1235)


def test_a_cut_off_prediction_is_all_chain_and_wrong(problems):
    generation = Generation(key=("p0", "truncation", 0.5), text="He has 3 + 4 = 7", tokens=7, cut_off=True, seconds=0.1)
    made = grade_generation(
        problems[0], generation, max_new_tokens=7, count_tokens=lambda texts: [len(t.split()) for t in texts],
    )  # fmt: skip
    assert (made.chain_tokens, made.answer_tokens, made.prediction, made.is_correct) == (7, 0, None, False)
    assert made.cut_off


def test_the_settings_phrases_announce_an_answer(problems):
    text = "3 + 4 = 7 Äpfel.\nDie Antwort ist 7."
    generation = Generation(key=("p0", "original", 1.0), text=text, tokens=9, cut_off=False, seconds=0.1)
    made = [
        grade_generation(
            problems[0], generation, max_new_tokens=64, count_tokens=lambda texts: [len(t.split()) for t in texts],
            answer_phrases=phrases,
        )
        for phrases in ([], PromptSettings(answer_phrases=["Die Antwort ist"]).answer_phrases)
    ]  # fmt: skip
    assert [(p.prediction, p.is_correct, p.chain_tokens) for p in made] == [(None, False, 10), ("7", True, 6)]


def _count(texts):
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(("draft", "answer"), [("3 + 4 = 7. #### 7", "#### 7"), ("3 + 4 = 7; 7.\n#### 7", "#### 7")])
def test_the_calculation_before_a_separator_is_the_chain(problems, draft, answer):
    generation = Generation(key=("p0", "chain_of_draft", 1.0), text=draft, tokens=9, cut_off=False, seconds=0.1)
    made = grade_generation(problems[0], generation, max_new_tokens=64, count_tokens=_count)
    assert made.is_correct and made.chain + answer == draft
    assert (made.chain_tokens, made.answer_tokens) == (len(draft.split()) - 2, 2)


def test_the_answer_in_the_form_that_tale_asks_for_is_read(problems):
    generation = Generation(
        key=("p0", "tale_ep", 1.0), text="3+4=7.\nAnswer: [[7]]", tokens=9, cut_off=False, seconds=1
    )
    made = grade_generation(problems[0], generation, max_new_tokens=64, count_tokens=_count)
    assert made.is_correct and made.chain == "3+4=7.\n"


def test_a_first_calls_tokens_and_seconds_are_part_of_the_answers_cost(problems):
    generation = Generation(key=("p0", "tale_ep", 1.0), text="3 + 4 = 7\n#### 7", tokens=9, cut_off=False, seconds=0.5)
    first = FirstCall(
        id="p0", method="tale_ep", ratio=1.0, output="[[5]]", budget=5, tokens=11, cut_off=False, seconds=0.25
    )
    options = {"max_new_tokens": 64, "count_tokens": _count}
    once, twice = (grade_generation(problems[0], generation, first=call, **options) for call in (None, first))
    assert (twice.chain_tokens, twice.first_call_tokens, twice.seconds) == (once.chain_tokens + 11, 11, 0.75)
    assert "first_call_tokens" in twice.model_dump_json() and "first_call_tokens" not in once.model_dump_json()
    assert once.answer_tokens == twice.answer_tokens


@pytest.mark.parametrize(
    ("output", "budget"),
    [
        ("Budget: [[12]]", 12),
        ("[[12]] or [[40]]", 12),
        ("Budget: 12", None),
        ("[[a few]]", None),
        ("[[" + "9" * 5000 + "]]", None),  # no number of tokens, and Python refuses to read it
        ("", None),
    ],
)
def test_a_first_call_states_a_budget_or_none(problems, tiny_tokenizer, output, budget):
    class Scripted:
        def generate(self, requests, **_):
            yield [Generation(r.key, output, tokens=3, cut_off=False, seconds=0.1) for r in requests]

    pairs = [("original", 1.0), ("tale_ep", 1.0)]
    [calls] = call_first(
        Scripted(), tiny_tokenizer, problems, PromptSettings(), pairs, max_new_tokens=9, label="first calls"
    )
    assert [(c.key, c.budget, c.output) for c in calls] == [((p.id, "tale_ep", 1.0), budget, output) for p in problems]
    first = {call.key: call for call in calls}
    made = build_requests(
        problems, tiny_tokenizer, PromptSettings(), method="tale_ep", ratio=1.0, max_new_tokens=9, first=first
    )
    assert all((f"use less than {budget} tokens:" in r.prompt) == (budget is not None) for r in made)


def test_a_second_call_without_its_first_is_refused(problems, tiny_tokenizer):
    for first in (None, {PredictionKey("elsewhere", "tale_ep", 1.0): None}):
        with pytest.raises(ValueError, match="'tale_ep' has not had its first call for problem 'p0'"):
            build_requests(
                problems, tiny_tokenizer, PromptSettings(), method="tale_ep", ratio=1.0, max_new_tokens=9, first=first
            )
