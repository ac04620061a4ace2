"""Requests of each method, and how an answer is graded and counted."""

from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.evaluation.predictions import build_requests, grade_generation
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
